"""The active party at a client: the same steps, nothing of it at the server, nonsense refused."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from clients.vertical_active import ActiveClient
from clients.vertical_state import PartyState
from strategies.vertical import VerticalStrategy
from strategies.vertical_parties import PassiveParties
from strategies.vertical_relay import RelayedActive
from strategies.vertical_seats import ActivePartyFailed
from tests.strategies.grid import InProcessGrid
from tests.strategies.test_vertical import Tamper, aligned, channels, node, side, strategy, trained

pytestmark = pytest.mark.usefixtures("flower_identity")


def active_node(
    client: ActiveClient, replies: list[RecordDict], tamper: Tamper | None = None
) -> Callable[[Message], Message | None]:
    """The active party at node 2; what it replied is written down."""
    context = Context(1, 2, {"partition-id": 2}, RecordDict(), {})
    acts = {
        "query.align": client.align,
        "train.start": client.start,
        "train.steps": client.steps,
        "train.alone": client.alone,
        "train.keep": client.keep,
        "train.save": client.save,
        "evaluate.measure": client.measure,
    }

    def answer(message: Message) -> Message | None:
        kind = message.metadata.message_type
        if kind == "query":
            metrics = MetricRecord({"partition-id": 2})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        reply = acts[kind](message, context)
        replies.append(reply.content)
        changed = reply.content if tamper is None else tamper(message, reply.content)
        return None if changed is None else Message(changed, reply_to=message)

    return answer


class World:
    """A strategy that relays, its grid and the client."""

    def __init__(self, tamper: Tamper | None = None, own: bool = False) -> None:
        self.replies: list[RecordDict] = []
        self.client = ActiveClient(side(own=own), PartyState(None))
        nodes = [node(0), node(1), active_node(self.client, self.replies, tamper)]
        self.grid = InProcessGrid(nodes)
        self.heard: list[tuple[str, str]] = []
        self.made = VerticalStrategy(
            PassiveParties(channels(), timeout=0.3),
            RelayedActive(0.3, lambda party, why: self.heard.append((party, why))),
        )

    def start(self) -> "World":
        self.made.align(self.grid)
        self.made.start(self.grid, 0)
        return self

    def weights(self) -> dict[str, Tensor]:
        assert self.client._live is not None
        return self.client._live[0].tensors()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(v.nan_to_num(7.0), right[k].nan_to_num(7.0)) for k, v in left.items()
    )


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_relayed_active_party_takes_the_same_steps(own: bool, steps: int) -> None:
    hosted, relayed = strategy(own=own), World(own=own).start()
    grid, _ = aligned(hosted)
    for server_round in (1, 2):
        there = trained(hosted, grid, steps, server_round=server_round)
        here = trained(relayed.made, relayed.grid, steps, server_round=server_round)
        assert here == there and here.n_steps == 3
    assert hosted.release_to_keep(grid, 3) == relayed.made.release_to_keep(relayed.grid, 3)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4])]
    assert hosted.train_alone(grid, 3, batches) == relayed.made.train_alone(
        relayed.grid, 3, batches
    )
    assert same(hosted.seat.tensors(), relayed.weights())
    assert torch.equal(hosted.measured, relayed.made.measured)


def test_the_server_gets_gradients_losses_and_numbers_and_has_nothing_of_the_model() -> None:
    world = World(own=True).start()
    trained(world.made, world.grid)
    assert world.made.seat.tensors() == {}
    sent = {(record, name) for reply in world.replies for record in reply for name in reply[record]}
    assert sent == {
        ("alignment", "tokens"),
        ("numbers", "training"),
        ("numbers", "measured"),
        ("losses", "losses"),
        ("gradients", "0"),
        ("gradients", "1"),
    }


def test_what_could_not_be_measured_is_said() -> None:
    world = World().start()
    facts = trained(world.made, world.grid)
    with pytest.raises(ValueError, match="too few people in round 1"):
        world.made.measure(world.grid, 1, facts)


def on(kind: str, change: Callable[[RecordDict], None]) -> Tamper:
    def tamper(message: Message, content: RecordDict) -> RecordDict:
        if message.metadata.message_type == kind:
            change(content)
        return content

    return tamper


def arrays(record: str, **values: np.ndarray) -> Callable[[RecordDict], None]:
    named = {name.removeprefix("p"): Array(v) for name, v in values.items()}
    return lambda content: content.update({record: ArrayRecord(named)})


GOOD = np.zeros((3, 8), np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (arrays("gradients", p0=GOOD * np.nan, p1=GOOD), "finite gradients"),
        (arrays("gradients", p0=GOOD[:2], p1=GOOD), r"gradients of shape \(3, 8\), got \(2, 8\)"),
        (arrays("gradients", p0=GOOD.astype(np.float64)[:1], p1=GOOD), "got .* float64"),
        (arrays("gradients", p0=GOOD), "other arrays"),
        (arrays("gradients", p0=GOOD, p1=np.zeros((300, 800), np.float32)), "bytes, got"),
        (arrays("losses", losses=np.full((1, 3), np.nan)), "finite losses"),
        (arrays("losses", losses=np.zeros((9, 3))), "at most 2 finite losses"),
        (arrays("losses", losses=np.zeros(3)), r"shape \(steps, 3\)"),
        (lambda content: content.pop("losses") and None, "other arrays"),
        (arrays("gift", x=GOOD), "unknown records gift"),
    ],
)
def test_nonsense_of_the_active_party_ends_the_round(
    change: Callable[[RecordDict], None], why: str
) -> None:
    world = World(on("train.steps", change)).start()
    with pytest.raises(ActivePartyFailed, match=f"party active .*{why}.* without labels"):
        trained(world.made, world.grid)


def test_numbers_that_are_not_each_record_once_are_refused() -> None:
    training = np.arange(11, dtype=np.int64)
    numbers = arrays("numbers", training=training, measured=training[:1])
    with pytest.raises(ActivePartyFailed, match="each of 11 records once"):
        World(on("train.start", numbers)).start()


@pytest.mark.parametrize(
    "figures",
    [
        "no json",
        "[1]",
        '{"failed": 3}',
        '{"verification": {}, "identification": {}, "enrolled": null, "backdoor": null}',
        json.dumps(
            {
                "verification": {"points": [], "eer": float("nan")},
                "identification": {"rates": [{"rate": 0.5}]},
                "enrolled": None,
                "backdoor": None,
            }
        ),
    ],
)
def test_figures_that_nobody_could_show_are_refused(figures: str) -> None:
    def change(content: RecordDict) -> None:
        content["figures"] = ConfigRecord({"json": figures})

    world = World(on("evaluate.measure", change)).start()
    facts = trained(world.made, world.grid)
    with pytest.raises(ActivePartyFailed, match="figures of an evaluation"):
        world.made.measure(world.grid, 1, facts)


def test_failure_and_silence_end_the_round_by_name() -> None:
    def fails(message: Message, content: RecordDict) -> RecordDict | Error:
        kind = message.metadata.message_type
        return Error(0, "the disk is full") if kind == "train.steps" else content

    world = World(fails).start()
    with pytest.raises(ActivePartyFailed, match="party active failed: the disk is full; nobody"):
        trained(world.made, world.grid)
    assert world.heard == [("active", "the disk is full")]

    def silent(message: Message, content: RecordDict) -> RecordDict | None:
        return None if message.metadata.message_type == "train.save" else content

    world = World(silent).start()
    with pytest.raises(ActivePartyFailed, match=r"party active did not reply within 0\.3 s"):
        world.made.seat.save(world.grid, 1)
