"""The engine without workers; tests/simulations/in_process.py is another grid, for tests alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console

from fedface.report.run_folder import RunFolder
from simulations import app
from simulations.engine import InProcessEngine
from simulations.execution import run
from strategies import cohorts
from strategies.cohorts import exchange, roll_call
from tests.simulations.in_process import in_process
from tests.simulations.test_execution import CARRYING, facts, lasting
from tests.simulations.tiny import tiny_config

IDENTITY = ("_task_id", "_run_id", "_node_id")
ENGINE = {"engine": {"name": "in_process"}}


@pytest.fixture(autouse=True)
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process, Flower's task has no identity; afterwards it is as it was."""
    for name in IDENTITY:
        monkeypatch.setattr(TaskIdentity, name, None)


def faulty_app(raises: BaseException | None = None, faulty: int = 1) -> ClientApp:
    """Nodes count the messages that they got in their own context; node ``faulty`` may raise."""
    made = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if raises is not None and partition == faulty:
            raise raises
        n = int(str(context.state.get("n", ConfigRecord({"n": 0}))["n"])) + 1
        context.state["n"] = ConfigRecord({"n": n})
        shares = int(context.node_config["num-partitions"])
        metrics = {"partition-id": partition, "n": n, "num-partitions": shares}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    made.query()(answer)
    made.train()(answer)
    return made


def on_grid(made: ClientApp, use: Callable[[Grid], Any], n_clients: int = 3) -> Any:
    """What ``use(grid)`` returns as the server of an in-process run."""
    returned: list[Any] = []
    InProcessEngine().run(lambda grid: returned.append(use(grid)), made, n_clients)
    return returned[0]


def questions(nodes: tuple[int, ...], kind: str = "train") -> dict[int, Message]:
    return {node: Message(RecordDict(), node, kind) for node in nodes}


def metrics(reply: Message) -> dict[str, Any]:
    return dict(reply.content["metrics"])


# ---- whole runs


def test_its_numbers_are_those_of_flower_bit_for_bit(tmp_path: Path) -> None:
    """Flower's engine with the grid of the tests: other node ids, replies in another order."""
    folders = []
    for name, settings in (("flower", {}), ("in_process", ENGINE)):
        config = tiny_config(tmp_path / name, **CARRYING, **settings)
        app._worker.cache_clear()
        if name == "flower":
            with in_process():
                run(config, Console(quiet=True))
        else:
            run(config, Console(quiet=True))
        folders.append(config.folder)
    assert lasting(folders[0]) == lasting(folders[1])
    assert facts(folders[0]) == facts(folders[1])


def test_a_site_that_raises_is_dropped_and_named_and_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, federation={"n_rounds": 1}, attack={"malicious_share": 0.0}, **ENGINE
    )
    app._worker.cache_clear()
    damaged = config.folder / "sites" / "0002" / "head-round-000000.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no head")
    run(config, Console(quiet=True))
    (event,) = RunFolder(config.folder).events("round")
    assert list(event["rejected"]) == ["2"]
    assert event["rejected"]["2"].startswith("client failed: ValueError: ")
    assert [client["client"] for client in event["clients"]] == [0, 1, 3]


# ---- the grid


def test_each_node_holds_its_partition_and_keeps_its_context() -> None:
    def use(grid: Grid) -> list[dict[str, Any]]:
        roster = roll_call(grid, 3)
        assert sorted(roster) == [0, 1, 2] and len(set(roster.values())) == 3
        nodes = tuple(roster[client] for client in (2, 0))
        replies = [exchange(grid, questions(nodes), 60) for _ in range(2)]
        return [metrics(reply[node]) for reply in replies for node in nodes]

    assert on_grid(faulty_app(), use) == [
        {"partition-id": client, "n": n, "num-partitions": 3} for n in (2, 3) for client in (2, 0)
    ]  # the roll call was the first message


def test_a_client_that_raises_becomes_an_error_reply_of_its_own() -> None:
    def use(grid: Grid) -> dict[int, Message]:
        return exchange(grid, questions((0, 1, 2)), 60)

    replies = on_grid(faulty_app(RuntimeError("the disk is full")), use)
    assert [node for node in sorted(replies) if replies[node].has_error()] == [1]
    assert "RuntimeError" in replies[1].error.reason
    assert "the disk is full" in replies[1].error.reason
    assert not replies[1].has_content()


def test_an_interrupt_in_a_client_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        on_grid(faulty_app(KeyboardInterrupt()), lambda grid: exchange(grid, questions((1,)), 60))


def test_what_the_server_raises_comes_out_unchanged() -> None:
    error = LookupError("of the server")

    def server(grid: Grid) -> None:
        raise error

    with pytest.raises(LookupError) as raised:
        InProcessEngine().run(server, faulty_app(), 2)
    assert raised.value is error


def test_a_message_is_answered_once_and_when_its_reply_is_pulled() -> None:
    def use(grid: Grid) -> None:
        ids = list(grid.push_messages(questions((0, 1)).values()))
        assert len(set(ids)) == 2
        assert list(grid.pull_messages(["nobody's"])) == []
        (late,) = grid.pull_messages(ids[1:])
        assert late.metadata.reply_to_message_id == ids[1]
        assert (metrics(late)["partition-id"], metrics(late)["n"]) == (1, 1)
        assert list(grid.pull_messages(ids[1:])) == []
        (first,) = grid.pull_messages(ids)
        assert first.metadata.reply_to_message_id == ids[0]
        assert list(grid.pull_messages(ids)) == []

    on_grid(faulty_app(), use)


def test_send_and_receive_answers_in_order() -> None:
    replies = on_grid(
        faulty_app(), lambda grid: grid.send_and_receive(questions((2, 0)).values(), timeout=60)
    )
    assert [metrics(reply)["partition-id"] for reply in replies] == [2, 0]


def test_clients_for_whom_no_time_is_left_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients run one after the other: the timeout is that of all of them together.

    Whoever is at work when it is over is waited for, and those after it are not begun.
    """
    clock = [0.0]
    monkeypatch.setattr(cohorts, "monotonic", lambda: clock[0])
    slow, plain = ClientApp(), faulty_app()

    @slow.train()
    def train(message: Message, context: Context) -> Message:
        clock[0] += 4.0
        return plain(message, context)

    def use(grid: Grid) -> tuple[list[int], dict[str, Any]]:
        in_time = sorted(exchange(grid, questions((0, 1, 2)), timeout=5))
        (last,) = exchange(grid, questions((2,)), timeout=5).values()
        return in_time, metrics(last)

    in_time, last = on_grid(slow, use)
    assert in_time == [0, 1]
    assert last["n"] == 1, "node 2 never got the first message"


def test_it_has_no_workers_to_lose() -> None:
    engine = InProcessEngine()
    assert engine.max_restarts == 0
    assert not engine.lost_worker("<class 'ray.exceptions.ActorDiedError'>:<'gone'>")
