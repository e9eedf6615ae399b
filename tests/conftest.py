from collections.abc import Iterator

import pytest


@pytest.fixture
def flower_identity() -> Iterator[None]:
    """Flower's task identity, without which flwr 1.41 builds no Message outside its runtime."""
    from flwr.supercore.task_identity import TaskIdentity

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield
