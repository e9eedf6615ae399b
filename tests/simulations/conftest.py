import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rendered faces are drawn once a session, in a folder that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        if "FEDFACE_CACHE" not in os.environ:
            patch.setenv("FEDFACE_CACHE", str(tmp_path_factory.mktemp("faces")))
        yield
