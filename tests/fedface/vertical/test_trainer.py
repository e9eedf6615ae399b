"""The active party at work: what it refuses, keeps and takes up again."""

import pytest
import torch
from torch import Tensor

from fedface.random import stream
from fedface.vertical.active import ActiveSettings
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import NoDistribution
from fedface.vertical.trainer import ActiveRecords, ActiveTrainer

N, DIM = 8, 4
CHANNELS = (Channel("left", DIM, 1.0, 0.1), Channel("right", DIM, 1.0, 0.1))
BATCHES = [torch.tensor([0, 2]), torch.tensor([4, 5])]


def trainer(keeps_round: int | None = None, alone: bool = False) -> ActiveTrainer:
    party = ActiveSettings(
        distribution=NoDistribution(), hidden=(), embedding_size=4, missing="mean"
    ).build(CHANNELS, 3, N, 16, stream(0, "active"))
    numbers = torch.arange(N)
    records = ActiveRecords(numbers, numbers % 3, None, numbers[:6], numbers[6:])
    cpu = torch.device("cpu")
    return ActiveTrainer(party, records, lambda own, *_: own, cpu, 5, alone, keeps_round)


def z(n: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(n, DIM, generator=stream(seed, "z"))


def weights(made: ActiveTrainer) -> Tensor:
    return torch.cat([v.reshape(-1).double() for v in made.party.tensors().values()])


def test_an_exchange_of_two_mini_batches_is_two_steps_of_the_party() -> None:
    made, by_hand = trainer(), trainer()
    received = {0: z(4), 1: z(4, 1)}
    gradients, losses = made.steps(1, 0, BATCHES, received)
    by_hand.party.start_round(1, 5)
    for k, records in enumerate(BATCHES):
        rows = slice(2 * k, 2 * k + 2)
        shown = [received[0][rows], received[1][rows]]
        step = by_hand.party.step(None, shown, records % 3, records)
        assert losses[k] == (step.loss, step.task_loss, step.distribution_loss)
        for p in (0, 1):
            found = step.gradients[p]
            assert found is not None and torch.equal(gradients[p][rows], found)
    assert torch.equal(weights(made), weights(by_hand))


def test_nobody_there_and_no_own_view_is_no_step() -> None:
    made = trainer()
    before = weights(made)
    assert made.steps(1, 0, BATCHES, {}) == ({}, [])
    assert torch.equal(weights(made), before)


def test_each_alone_steps_once_for_every_party_that_is_there() -> None:
    made = trainer(alone=True)
    gradients, losses = made.steps(1, 0, BATCHES, {0: z(4), 1: z(4, 1)})
    assert len(losses) == 4 and set(gradients) == {0, 1}
    assert len(made.steps(1, 2, BATCHES, {1: z(4, 2)})[1]) == 2


@pytest.mark.parametrize("records", [[0, 6], [0, 8], [-1, 2]])
def test_records_that_nobody_may_train_on_are_refused(records: list[int]) -> None:
    made, wrong = trainer(), [torch.tensor(records)]
    before = weights(made)
    for act in (
        lambda: made.steps(1, 0, wrong, {0: z(2)}),
        lambda: made.steps_alone(1, wrong),
        lambda: made.keep([(wrong[0], [z(2), None])]),
    ):
        with pytest.raises(ValueError, match=r"training records of 0\.\.7, got 1 others"):
            act()
    assert torch.equal(weights(made), before) and made.kept is None


def test_embeddings_that_no_honest_party_sends_change_nothing() -> None:
    made = trainer(keeps_round=1)
    before = weights(made)
    for act in (
        lambda: made.steps(1, 0, BATCHES, {0: z(4), 1: 99 * z(4)}),
        lambda: made.keep([(torch.arange(2), [None, 99 * z(2)])]),
    ):
        with pytest.raises(ValueError, match="party right needs to send embeddings clipped at 1"):
            act()
    assert torch.equal(weights(made), before) and made.kept is None


def test_the_last_round_is_kept_and_stood_in_for_where_nothing_arrived() -> None:
    made = trainer(keeps_round=2)
    made.steps(1, 0, BATCHES, {0: z(4), 1: z(4, 1)})
    assert made.kept is None
    made.steps(2, 0, BATCHES, {0: z(4, 2)})
    assert made.kept is not None and made.kept[0] is not None
    assert torch.equal(made.kept[0][torch.cat(BATCHES)], z(4, 2))
    assert bool(made.kept[0][1].isnan().all())
    made.steps_alone(3, BATCHES)
    first, second = made.kept
    assert first is not None and second is None  # nothing of the second party: it is missing
    mean = (z(4).double().sum(0) + z(4, 2).double().sum(0)) / 8
    assert torch.allclose(first[1].double(), mean, atol=1e-6)


@pytest.mark.parametrize("keeps_round", [None, 1])
def test_a_resumed_one_goes_on_as_if_nothing_had_been(keeps_round: int | None) -> None:
    made, again = trainer(keeps_round), trainer(keeps_round)
    made.steps(1, 0, BATCHES, {0: z(4), 1: z(4, 1)})
    if keeps_round is None:
        made.keep([(torch.arange(3), [z(3), None]), (torch.arange(3, 6), [None, z(3, 1)])])
    again.load(made.tensors())
    for _ in range(2):
        assert made.steps_alone(2, BATCHES) == again.steps_alone(2, BATCHES)
    assert torch.equal(weights(made), weights(again))
    for left, right in zip(made.kept or (), again.kept or (), strict=True):
        assert left is not None and right is not None and torch.equal(left, right)


def test_kept_nothing_everybody_is_missing() -> None:
    made = trainer()
    assert made.steps_alone(1, BATCHES) == []
