"""The resident grid over workers in this process: who works when, what is copied, who fails."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.arrays import HeldArray
from simulations.engine import resident_worker
from simulations.engine.resident_grid import ResidentGrid
from simulations.engine.resident_worker import ClientWorker
from simulations.engine.workers import EngineFailed
from strategies.cohorts import exchange, roll_call
from tests.simulations.fake_ray import Actor, FakeRay, Killed

pytestmark = pytest.mark.usefixtures("flower_identity")

SHAPES = {"w": (200, 100), "b": (7,)}
DIM = 20_007


class Federation:
    """A grid over fake workers, whose clients do what ``act`` says.

    Attributes:
        started: All actors ever started.
        seen: (node, kind) of every message that a client got, in order.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        act: Callable[[int, int], None] = lambda node, visit: None,
        n_clients: int = 4,
        n_workers: int = 2,
    ) -> None:
        self.ray = FakeRay()
        monkeypatch.setattr(ray, "get", self.ray.get)
        self.started: list[Actor] = []
        self.seen: list[tuple[int, str]] = []
        self.act = act
        self.app = ClientApp()
        self.app.train()(self._answer)
        self.app.evaluate()(self._answer)
        self.app.query()(self._answer)
        self.grid = ResidentGrid(self.ray, self._start, n_workers, n_clients)

    def _start(self) -> Actor:
        self.started.append(Actor(ClientWorker(self.app, ".")))
        return self.started[-1]

    def _answer(self, message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        kind = message.metadata.message_type
        visit = self.seen.count((node, kind)) + 1
        self.seen.append((node, kind))
        self.act(node, visit)
        n = int(str(context.state.get("n", ConfigRecord({"n": 0}))["n"])) + 1
        context.state["n"] = ConfigRecord({"n": n})
        content: dict[str, Any] = {"metrics": MetricRecord({"partition-id": node, "n": n})}
        if "arrays" in message.content:
            received = message.content["arrays"].items()
            content["arrays"] = ArrayRecord({k: Array(v.numpy() + node) for k, v in received})
        return Message(RecordDict(content), reply_to=message)

    def round(self, nodes: list[int], timeout: float = 60.0) -> dict[int, Message]:
        """Sends all nodes the same weights and returns what came back."""
        record = weights()
        return exchange(
            self.grid,
            {n: Message(RecordDict({"arrays": record}), n, "train") for n in nodes},
            timeout,
            poll_seconds=0,
        )


def weights() -> ArrayRecord:
    return ArrayRecord({name: Array(np.ones(s, np.float32)) for name, s in SHAPES.items()})


def counts(replies: dict[int, Message]) -> dict[int, int]:
    return {n: r.content["metrics"]["n"] for n, r in replies.items() if r.has_content()}


def test_updates_are_rows_of_one_matrix_in_the_order_of_the_clients(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    replies = federation.round([0, 1, 2, 3])
    memory = federation.grid.memory
    assert memory is not None
    assert memory.matrix.tolist() == [[node + 1.0] * DIM for node in range(4)]
    for node, reply in replies.items():
        record = reply.content["arrays"]
        assert {name: a.shape for name, a in record.items()} == SHAPES
        assert all(isinstance(a, HeldArray) for a in record.values())
        assert record["w"].values.data_ptr() == memory.matrix[node].data_ptr()


def test_rows_and_broadcasts_are_used_again_and_nothing_piles_up(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    for number in range(1, 4):
        replies = federation.round([1, 3])
        rows = {n: r.content["arrays"]["w"].owner.index for n, r in replies.items()}
        assert rows == {1: 0, 3: 1}
        assert federation.ray.n_put == number, "the weights are put once for all"
        del replies
        gc.collect()
        held = [len(actor.worker._broadcast) for actor in federation.started]
        assert held == [1, 1], "a worker keeps no weights of earlier rounds in the store"
    grid = federation.grid
    assert not grid._known and not grid._tasks and not grid._waiting and not grid._unanswered


def test_a_reply_that_is_held_keeps_its_row(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    kept = federation.round([2])[2].content["arrays"]
    other = federation.round([3])[3].content["arrays"]
    assert kept["w"].numpy().flat[0] == 3 and other["w"].numpy().flat[0] == 4


def test_whoever_keeps_all_replies_gets_new_memory_and_models_may_change(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_clients=2)
    kept = [federation.round([0, 1]) for _ in range(3)]
    monkeypatch.setitem(SHAPES, "b", (9,))
    kept.append(federation.round([1, 0]))
    for replies, length in zip(kept, (7, 7, 7, 9), strict=True):
        for node, reply in replies.items():
            assert reply.content["arrays"]["b"].numpy().tolist() == [node + 1.0] * length


def test_where_memory_cannot_be_shared_updates_come_with_the_answer(monkeypatch) -> None:
    monkeypatch.setattr("simulations.engine.resident_worker.opened", lambda place: None)
    replies = Federation(monkeypatch).round([0, 2])
    for node, reply in replies.items():
        assert reply.content["arrays"]["b"].numpy().tolist() == [node + 1.0] * 7


def test_a_client_may_change_what_it_received(monkeypatch) -> None:
    federation = Federation(monkeypatch)

    @federation.app.train("spoil")
    def spoil(message: Message, context: Context) -> Message:
        state = message.content["arrays"].to_torch_state_dict()
        for value in state.values():
            value += 1
        return Message(RecordDict({"arrays": ArrayRecord(state)}), reply_to=message)

    record = weights()
    messages = {n: Message(RecordDict({"arrays": record}), n, "train.spoil") for n in range(4)}
    replies = exchange(federation.grid, messages, 60, poll_seconds=0)
    assert all(r.content["arrays"]["w"].numpy().max() == 2 for r in replies.values())


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.zeros((2, 2), np.float32)},
        {"w": np.zeros((200, 100), np.float64), "b": np.zeros(7, np.float32)},
    ],
)
def test_arrays_that_are_no_update_come_as_they_are(monkeypatch, arrays) -> None:
    federation = Federation(monkeypatch)

    @federation.app.train("other")
    def other(message: Message, context: Context) -> Message:
        record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
        return Message(RecordDict({"arrays": record}), reply_to=message)

    message = Message(RecordDict({"arrays": weights()}), 0, "train.other")
    (reply,) = federation.grid.send_and_receive([message], timeout=60)
    found = reply.content["arrays"]
    assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
        n: (v.shape, str(v.dtype)) for n, v in arrays.items()
    }


def test_arrays_that_lie_about_their_bytes_come_as_they_are(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    lie = ArrayRecord({"w": Array("float32", (DIM,), "numpy.ndarray", b"no numbers")})

    @federation.app.train("lie")
    def tell(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": lie}), reply_to=message)

    message = Message(RecordDict({"arrays": weights()}), 0, "train.lie")
    (reply,) = federation.grid.send_and_receive([message], timeout=60)
    assert reply.content["arrays"]["w"].data == b"no numbers"


def test_contexts_stay_with_the_nodes_whoever_works(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    assert list(roll_call(federation.grid, 4).values()) == [0, 1, 2, 3]
    for visit in (2, 3):
        assert counts(federation.round([0, 1, 2, 3])) == dict.fromkeys(range(4), visit)


def test_the_slowest_come_first_once_they_are_known(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_workers=1)
    federation.round([0, 1, 2, 3])
    assert [node for node, _ in federation.seen] == [0, 1, 2, 3]
    for node, seconds in enumerate((2.0, 9.0, 4.0, 1.0)):
        for _ in range(60):
            federation.grid.costs.add(node, "train", seconds)
    federation.seen.clear()
    federation.round([0, 1, 2, 3])
    assert [node for node, _ in federation.seen] == [1, 2, 0, 3]


def known_to_take(federation: Federation, seconds: float, n: int) -> None:
    """Lets the grid believe that each of ``n`` clients takes so many seconds."""
    for node in range(n):
        federation.grid.costs.add(node, "train", seconds)


def bundles(federation: Federation) -> list[list[int]]:
    """The clients that the workers got at a time."""
    return [
        [work.metadata.dst_node_id for work in works]
        for actor in federation.started
        for works in actor.given
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.001, [[0, 1, 2, 3], [4, 5], [6], [7]]),
        (0.04, [[0, 1], [2, 3], [4, 5], [6], [7]]),
        (0.3, [[node] for node in range(8)]),
    ],
)
def test_small_clients_travel_together_and_ever_fewer(monkeypatch, seconds, expected) -> None:
    federation = Federation(monkeypatch, n_clients=8, n_workers=1)
    known_to_take(federation, seconds, 8)
    replies = federation.round(list(range(8)))
    assert bundles(federation) == expected
    assert counts(replies) == dict.fromkeys(range(8), 1)
    assert [r.content["arrays"]["w"].values[0, 0] for _, r in sorted(replies.items())] == [
        node + 1 for node in range(8)
    ]


def test_clients_of_unknown_cost_travel_alone(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_clients=8, n_workers=1)
    federation.round(list(range(8)))
    assert bundles(federation) == [[node] for node in range(8)]


@pytest.mark.parametrize("killer", [0, 2, 7])
def test_who_kills_a_worker_in_a_bundle_fails_alone(monkeypatch, killer) -> None:
    def act(node: int, visit: int) -> None:
        if node == killer:
            raise Killed("killed")

    federation = Federation(monkeypatch, act, n_clients=8)
    known_to_take(federation, 0.001, 8)
    replies = federation.round(list(range(8)))
    assert counts(replies) == dict.fromkeys(set(range(8)) - {killer}, 1)
    assert replies[killer].error.reason.startswith("worker died 2 times: ActorDiedError")
    assert federation.seen.count((killer, "train")) == 2
    assert not federation.grid._tasks


def test_a_fault_of_the_worker_fails_no_other_client_of_the_bundle(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_clients=8, n_workers=1)
    known_to_take(federation, 0.001, 8)
    writing = resident_worker.write

    def broken(arrays: Any, row: torch.Tensor) -> None:
        if arrays["b"][0] == 3:
            raise OSError("no space left")
        writing(arrays, row)

    monkeypatch.setattr(resident_worker, "write", broken)
    replies = federation.round(list(range(8)))
    assert bundles(federation)[0] == [0, 1, 2, 3]
    assert replies[2].error.reason == "worker failed: OSError: no space left"
    assert sorted(counts(replies)) == [0, 1, 3, 4, 5, 6, 7]


def test_a_client_that_raises_is_named_and_not_tried_again(monkeypatch) -> None:
    def act(node: int, visit: int) -> None:
        if node == 2:
            raise RuntimeError("the disk is full")

    federation = Federation(monkeypatch, act)
    replies = federation.round([0, 1, 2, 3])
    assert sorted(counts(replies)) == [0, 1, 3]
    assert replies[2].error.reason.startswith("RuntimeError: ")
    assert len(federation.started) == 2


def test_a_worker_that_dies_is_replaced_and_its_client_tried_once_more(monkeypatch) -> None:
    def act(node: int, visit: int) -> None:
        if node == 2 and visit == 1:
            raise Killed("killed")

    federation = Federation(monkeypatch, act)
    replies = federation.round([0, 1, 2, 3])
    assert counts(replies) == dict.fromkeys(range(4), 1), "an unfinished visit left nothing behind"
    assert len(federation.started) == 3 and len(federation.ray.killed) == 1
    assert replies[2].content["arrays"]["w"].values[0, 0] == 3


@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_client_that_kills_every_worker_fails_alone(monkeypatch, n_workers) -> None:
    def act(node: int, visit: int) -> None:
        if node == 1:
            raise Killed("killed")

    federation = Federation(monkeypatch, act, n_clients=6, n_workers=n_workers)
    replies = federation.round(list(range(6)))
    assert sorted(counts(replies)) == [0, 2, 3, 4, 5]
    assert replies[1].error.reason.startswith("worker died 2 times: ActorDiedError")
    assert federation.seen.count((1, "train")) == 2
    assert all(federation.seen.count((n, "train")) == 1 for n in (0, 2, 3, 4, 5))


def test_workers_that_only_die_end_the_run(monkeypatch) -> None:
    def act(node: int, visit: int) -> None:
        raise Killed("no memory")

    federation = Federation(monkeypatch, act, n_clients=40)
    with pytest.raises(EngineFailed, match="workers die one after the other"):
        federation.round(list(range(40)))


def test_a_fault_of_the_worker_itself_fails_the_client(monkeypatch) -> None:
    federation = Federation(monkeypatch)

    def broken(tensors: object, row: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("simulations.engine.resident_worker.write", broken)
    replies = federation.round([0, 1])
    assert all("no space left" in reply.error.reason for reply in replies.values())
    assert len(federation.started) == 2


def test_a_straggler_is_given_up_when_its_node_gets_new_work(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_clients=2, n_workers=1)
    grid, (worker,) = federation.grid, federation.started
    remote = worker.remote

    def never(work: Any) -> Any:
        reference = remote(work)
        federation.ray.stuck.add(reference.number)
        return reference

    monkeypatch.setattr(worker, "remote", never)
    assert federation.round([0, 1], timeout=0.01) == {}
    assert counts(federation.round([0, 1])) == {0: 1, 1: 1}
    assert federation.ray.killed == [worker] and len(federation.started) == 2
    assert not grid._tasks


def test_silence_is_kept_within_the_timeout(monkeypatch) -> None:
    federation = Federation(monkeypatch, n_workers=1)
    remote = federation.started[0].remote

    def never(work: Any) -> Any:
        reference = remote(work)
        federation.ray.stuck.add(reference.number)
        return reference

    monkeypatch.setattr(federation.started[0], "remote", never)
    message = Message(RecordDict(), 0, "train")
    assert federation.grid.send_and_receive([message], timeout=0.01) == []


def test_unknown_nodes_and_replies_are_none_of_its_business(monkeypatch) -> None:
    grid = Federation(monkeypatch).grid
    with pytest.raises(ValueError, match=r"node ids are 0\.\.3, got 4"):
        grid.push_messages([Message(RecordDict(), 4, "train")])
    assert grid.pull_messages(["nobody's"]) == []
    assert torch.get_num_threads() == 1


def test_the_workers_end_with_the_grid(monkeypatch) -> None:
    federation = Federation(monkeypatch)
    federation.grid.close()
    assert federation.ray.killed == federation.started
