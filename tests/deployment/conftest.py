"""One federation of real processes for all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.network import SERVER_ADDRESS, network, wait_for
from tests.deployment.world import PORT, SITES, World, faces_of_sites, run_yaml


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts these tests last, so that the federation is not up while others run."""
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that is up, four admitted sites with their own people and policies, all down.

    It takes a minute or two, so the tests share it: whoever alters a site puts it right again.
    """
    folder = tmp_path_factory.mktemp("federation")
    with network(folder, ("server", *SITES, "operator", "stranger")) as net:
        made = World(net, folder)
        made.must(
            "operator",
            *("federation", "init", "fed", "--host", SERVER_ADDRESS, "--name", "test"),
            *("--port", str(PORT)),
        )
        first = made.write(run_yaml("first"))
        faces_of_sites(folder / first, folder / "faces")
        policy = made.must("operator", "site", "policy", first)
        everyones = "".join(x for x in policy.splitlines(True) if not x.startswith("runs ="))
        (folder / "policy.toml").write_text(everyones)
        made.server_up()
        made.new_sites(*SITES)
        for name in SITES:
            key = f"site-{name}/keys/{name}.pub"
            wait_for(
                lambda name=name, key=key: (
                    made.operator("federation", "admit", name, key).returncode == 0
                ),
                f"site {name} is admitted",
            )
        yield made


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces are drawn into a cache that the sites do not share."""
    for name in ("FEDFACE_OPERATOR", "FEDFACE_SERVER", "FEDFACE_SITE"):
        monkeypatch.delenv(name, raising=False)
    assert os.environ.get("PATH")
