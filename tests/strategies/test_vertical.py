"""The active party at the server, against a grid of plain functions and real passive parties."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.vertical import VerticalClient
from clients.vertical_state import PartyState
from fedface.backbones import SmallConv
from fedface.privacy import EmbeddingRelease
from fedface.random import numpy_stream, stream
from fedface.training.optimizers import SGD
from fedface.vertical.active import ActiveSettings
from fedface.vertical.alignment import hashed
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import NoDistribution
from fedface.vertical.passive import PassiveSettings
from fedface.vertical.trainer import ActiveRecords, ActiveSide, ActiveTrainer, Pieces
from strategies.vertical import RoundFacts, VerticalStrategy
from strategies.vertical_parties import PassiveParties
from strategies.vertical_seats import HostedActive
from tests.strategies.grid import InProcessGrid

N, DIM, KEY = 12, 8, b"0123456789abcdef"
IDS = [f"person/{i}" for i in range(N)]
RELEASE = EmbeddingRelease(clip=1.0, sigma=0.1, n_releases=50, n_parties=2)
CONV = SmallConv(widths=(4, 4, 8, 8), embedding_size=DIM)
SETTINGS = PassiveSettings(backbone=CONV, release=RELEASE, optimizer=SGD(learning_rate=0.05))

Tamper = Callable[[Message, RecordDict], RecordDict | Error | None]

pytestmark = pytest.mark.usefixtures("flower_identity")


def node(party: int, tamper: Tamper | None = None) -> Callable[[Message], Message | None]:
    """A passive party that holds all records but one, in reversed order."""
    held = list(range(N - 1 - party, -1, -1))
    images = numpy_stream(party, "views").integers(0, 256, (N, 16, 16, 3)).astype(np.uint8)
    client = VerticalClient(
        party=party,
        name=f"p{party}",
        images=images[held],
        tokens=hashed([IDS[i] for i in held], KEY),
        settings=SETTINGS,
        augmentation=Augmentation(),
        pretraining=None,
        public=None,
        n_rounds=3,
        seed=0,
        secret=party,
        state=PartyState(None),
        device=torch.device("cpu"),
    )
    context = Context(1, party, {"partition-id": party}, RecordDict(), {})
    acts = {
        "query.align": client.align,
        "train.embed": client.train,
        "train.backward": client.train,
        "train.save": client.save,
        "evaluate.embed": client.evaluate,
    }

    def answer(message: Message) -> Message | None:
        kind = message.metadata.message_type
        if kind == "query":
            metrics = MetricRecord({"partition-id": party})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        reply = acts[kind](message, context)
        changed = reply.content if tamper is None else tamper(message, reply.content)
        return None if changed is None else Message(changed, reply_to=message)

    return answer


def channels() -> list[Channel]:
    return [Channel(f"p{k}", DIM, RELEASE.bound, RELEASE.noise) for k in (0, 1)]


def side(own: bool = False, missing: str = "mean", alone: bool = False) -> ActiveSide:
    """An active party that holds all records, the last three of the aligned to measure on."""

    def prepare(rows: Tensor, is_fresh: bool) -> ActiveTrainer:
        party = ActiveSettings(
            backbone=CONV if own else None,
            distribution=NoDistribution(),
            missing=missing,
            hidden=(),
            embedding_size=4,
        ).build(channels(), 3, N, 16, stream(0, "active"))
        n, views = len(rows), None
        if own:
            views = numpy_stream(9, "own").integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
        numbers = torch.arange(n)
        records = ActiveRecords(rows, rows % 3, views, numbers[: n - 2], numbers[n - 2 :])
        cpu = torch.device("cpu")
        return ActiveTrainer(party, records, lambda view, *_: view, cpu, 9, alone)

    def measure(trainer: ActiveTrainer, pieces: Pieces, server_round: int) -> dict[str, object]:
        raise ValueError(f"too few people in round {server_round}")

    return ActiveSide(hashed(IDS, KEY), prepare, measure)


def strategy(**options: object) -> VerticalStrategy:
    """The strategy, with the active party at the server."""
    parties = PassiveParties(channels(), timeout=0.3)
    return VerticalStrategy(parties, HostedActive(side(**options)))  # type: ignore[arg-type]


def aligned(
    made: VerticalStrategy, tampers: tuple[Tamper | None, Tamper | None] = (None, None)
) -> tuple[InProcessGrid, dict[str, str]]:
    """A grid whose parties are aligned with the strategy."""
    grid = InProcessGrid([node(k, t) for k, t in enumerate(tampers)])
    _, refused = made.align(grid)
    made.start(grid, 0)
    return grid, refused


BATCHES = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 4]), torch.tensor([6, 7, 8])]


def trained(
    made: VerticalStrategy,
    grid: InProcessGrid,
    steps: int = 1,
    present: tuple[int, ...] = (0, 1),
    server_round: int = 1,
) -> RoundFacts:
    return made.train_round(grid, server_round, BATCHES, present, steps)


def weights(made: VerticalStrategy) -> Tensor:
    return torch.cat([v.double().reshape(-1) for v in made.seat.tensors().values()])


def kinds(grid: InProcessGrid) -> list[str]:
    return [kind for _, kind in grid.asked if kind not in ("query", "query.align")]


def test_alignment_finds_the_records_that_all_hold() -> None:
    made = strategy()
    _, refused = aligned(made)
    assert refused == {}
    tokens = hashed(IDS, KEY)
    for k, rows in enumerate(made.parties.rows):
        assert rows is not None and len(rows) == N - 1  # nobody but party 0 has record 11
        held = hashed([IDS[i] for i in range(N - 1 - k, -1, -1)], KEY)
        assert [held[i] for i in rows] == sorted(tokens[: N - 1])


def test_a_party_with_malformed_tokens_takes_no_part_and_the_rest_does() -> None:
    def lies(message: Message, content: RecordDict) -> RecordDict:
        if message.metadata.message_type == "query.align":
            content["alignment"]["tokens"] = ["no token"]
        return content

    made = strategy()
    grid, refused = aligned(made, (lies, None))
    assert list(refused) == ["p0"] and "party p0 needs to send HMAC-SHA256" in refused["p0"]
    facts = trained(made, grid)
    assert facts.answered == {"p1": 3} and facts.n_steps == 3
    assert made.parties.rows[0] is None


def test_one_message_a_step_carries_the_gradient_and_the_next_question() -> None:
    made = strategy()
    grid, _ = aligned(made)
    facts = trained(made, grid)
    assert facts.n_steps == 3 and facts.refused == {} and facts.answered == {"p0": 3, "p1": 3}
    assert kinds(grid) == 2 * ["train.embed"] + 6 * ["train.backward"]
    assert made.parties.asked == 4


def test_the_loss_falls() -> None:
    made = strategy()
    grid, _ = aligned(made)
    losses = []
    for server_round in range(1, 9):
        facts = trained(made, grid, server_round=server_round)
        losses.append(facts.losses[0] / facts.n_steps)
    assert losses[-1] < 0.8 * losses[0]


def test_several_steps_travel_in_one_message() -> None:
    made = strategy()
    grid, _ = aligned(made)
    facts = trained(made, grid, steps=3)
    assert facts.n_steps == 3 and made.parties.asked == 2
    assert kinds(grid) == 2 * ["train.embed"] + 2 * ["train.backward"]


def test_the_order_of_replies_and_node_ids_do_not_matter() -> None:
    found = []
    for seed in (1, 2):
        made = strategy()
        grid = InProcessGrid([node(0), node(1)], seed=seed)
        made.align(grid)
        made.start(grid, 0)
        trained(made, grid)
        found.append(weights(made))
    assert torch.equal(*found)


def spoiled(change: Callable[[RecordDict], None], when: str = "train.embed") -> Tamper:
    def tamper(message: Message, content: RecordDict) -> RecordDict:
        if message.metadata.message_type == when:
            change(content)
        return content

    return tamper


def put(values: np.ndarray) -> Callable[[RecordDict], None]:
    return lambda content: content.update({"embeddings": ArrayRecord({"z": Array(values)})})


def unknown_ids(content: RecordDict) -> None:
    content["records"] = ArrayRecord({"rows": Array(np.array([0, 1, 77], np.int64))})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put(np.full((3, DIM), np.nan, np.float32)), "finite"),
        (put(np.zeros((3, DIM + 1), np.float32)), "shape"),
        (put(np.full((3, DIM), 9, np.float32)), "clipped at 1"),
        (unknown_ids, "nobody asked for"),
    ],
)
def test_malformed_embeddings_are_refused_by_name_and_the_round_goes_on(
    change: Callable[[RecordDict], None], why: str
) -> None:
    made = strategy()
    grid, _ = aligned(made, (spoiled(change), None))
    facts = trained(made, grid)
    reason, count = facts.refused["p0"]
    assert "party p0" in reason and why in reason and count == 3
    assert facts.answered == {"p1": 3} and facts.n_steps == 3
    assert torch.isfinite(weights(made)).all()


def test_a_party_that_fails_once_is_asked_again() -> None:
    calls = []

    def fails_once(message: Message, content: RecordDict) -> RecordDict | Error:
        calls.append(message.metadata.message_type)
        if calls.count("train.backward") == 1 and message.metadata.message_type == "train.backward":
            calls.append("failed")
            return Error(0, "out of memory")
        return content

    made = strategy()
    heard: list[tuple[str, str]] = []
    made.parties.on_failure = lambda party, why: heard.append((party, why))
    grid, _ = aligned(made, (None, fails_once))
    facts = trained(made, grid)
    assert facts.refused["p1"] == ("party p1 failed: out of memory", 1)
    assert facts.answered == {"p0": 3, "p1": 2}
    assert heard == [("p1", "out of memory")]


def test_a_silent_party_is_missing_for_the_rest_of_the_round_only() -> None:
    silent = {"now": True}

    def tamper(message: Message, content: RecordDict) -> RecordDict | None:
        kind = message.metadata.message_type
        return None if silent["now"] and kind.startswith("train") else content

    made = strategy()
    grid, _ = aligned(made, (None, tamper))
    facts = trained(made, grid)
    assert facts.answered == {"p0": 3} and facts.refused["p1"][1] == 1
    assert "p1 did not reply" in facts.refused["p1"][0]
    silent["now"] = False
    assert trained(made, grid, server_round=2).answered == {"p0": 3, "p1": 3}


def test_who_is_away_is_not_asked() -> None:
    made = strategy()
    grid, _ = aligned(made)
    facts = trained(made, grid, present=(1,))
    assert facts.answered == {"p1": 3} and facts.refused == {}
    nobody = trained(made, grid, present=(), server_round=2)
    assert nobody.n_steps == 0 and nobody.answered == {}
    own = strategy(own=True)
    grid, _ = aligned(own)
    assert trained(own, grid, present=()).n_steps == 3  # its own view teaches something


def test_each_alone_takes_a_step_for_every_party() -> None:
    made = strategy(missing="zeros", alone=True)
    grid, _ = aligned(made)
    facts = trained(made, grid)
    assert facts.n_steps == 6 and facts.answered == {"p0": 3, "p1": 3}


def test_inference_is_released_once_and_what_was_spent_is_said() -> None:
    made = strategy()
    grid, _ = aligned(made)
    numbers = torch.arange(5)
    ((records, first),) = made.parties.released(grid, 1, numbers)
    ((_, again),) = made.parties.released(grid, 1, numbers)
    assert torch.equal(records, numbers)
    for a, b in zip(first, again, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    spent = made.parties.save(grid, 1)
    assert set(spent) == {"p0", "p1"} and spent["p0"]["most_releases"] == 1
    one = RELEASE.cost(1, RELEASE.delta)
    assert spent["p0"]["replace_one"] == pytest.approx(one.replace_one)


def test_kept_embeddings_train_the_active_party_without_messages() -> None:
    made = strategy()
    grid, _ = aligned(made)
    facts = made.release_to_keep(grid, 1)
    assert facts.answered == {"p0": 1, "p1": 1}
    asked, before = made.parties.asked, weights(made)
    facts = made.train_alone(grid, 1, BATCHES)
    assert facts.n_steps == 3 and made.parties.asked == asked
    assert not torch.equal(weights(made), before)
