import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fedface.aggregation.ariba import Ariba
from fedface.aggregation.cohort import Cohort, State
from fedface.aggregation.memory import remember
from fedface.aggregation.taking_back import take_back
from fedface.parameters import Layout

DIM = 12
LAYOUT = Layout.from_shapes({"fc.weight": (3, 4)})


def cohort(updates: Tensor, server_round: int = 1, ids: tuple[int, ...] | None = None) -> Cohort:
    n = len(updates)
    return Cohort(
        updates=updates,
        layout=LAYOUT,
        n_examples=torch.full((n,), 10),
        n_steps=torch.full((n,), 5),
        client_ids=tuple(range(n)) if ids is None else ids,
        server_round=server_round,
        seed=0,
    )


def updates_of(server_round: int, n: int = 5) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(server_round))


class Model:
    """The sum of the global updates, as a server would have it."""

    def __init__(self, after: int = 1) -> None:
        self.after = after
        self.state: State = {}
        self.weights = torch.zeros(DIM)

    def step(
        self,
        updates: Tensor,
        trust: list[float],
        pruned: list[int],
        ids: tuple[int, ...] | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        this = cohort(updates, 1, ids)
        share = torch.tensor(trust, dtype=torch.float64)
        factors = torch.ones_like(share) if factors is None else factors
        marks = torch.zeros(len(trust), dtype=torch.bool)
        marks[pruned] = True
        state = remember(self.state, this, torch.zeros(len(trust)), marks)
        mean = ((share * factors)[:, None] * updates.double()).sum(dim=0).float()
        found, self.state = take_back(state, this, mean, share, factors, marks, self.after)
        self.weights += found
        return found


EVEN = [0.2] * 5
WITHOUT_1 = [0.25, 0.0, 0.25, 0.25, 0.25]


def test_the_model_is_as_if_the_pruned_had_never_been_there() -> None:
    model, expected = Model(), torch.zeros(DIM)
    for server_round in range(4):
        updates = updates_of(server_round)
        model.step(
            updates, EVEN if server_round < 3 else WITHOUT_1, [1] if server_round == 3 else []
        )
        expected += updates[[0, 2, 3, 4]].mean(dim=0)
    assert_close(model.weights, expected)
    updates = updates_of(9)
    assert_close(model.step(updates, WITHOUT_1, [1]), updates[[0, 2, 3, 4]].mean(dim=0))


def test_one_after_the_other_and_again_after_a_return() -> None:
    model, expected = Model(), torch.zeros(DIM)
    plan = [
        (EVEN, []),
        (EVEN, []),
        (WITHOUT_1, [1]),
        (EVEN, []),  # client 1 is trusted again ...
        ([1 / 3, 0.0, 1 / 3, 0.0, 1 / 3], [1, 3]),  # ... and goes, with client 3
    ]
    plain = torch.zeros(DIM)
    for server_round, (trust, pruned) in enumerate(plan):
        updates = updates_of(server_round)
        model.step(updates, trust, pruned)
        plain += torch.tensor(trust) @ updates
        expected += updates[[0, 2, 4]].mean(dim=0)
    # Weights were not constant, so it is an estimate; without taking back it would be far off.
    assert float((model.weights - expected).norm()) < 0.4 * float((plain - expected).norm())


def test_shortened_updates_are_taken_back_as_they_were_applied() -> None:
    model = Model()
    factors = torch.tensor([1.0, 0.1, 1.0, 1.0, 1.0], dtype=torch.float64)
    model.step(updates_of(0), EVEN, [], factors=factors)
    model.step(updates_of(1), WITHOUT_1, [1], factors=factors)
    expected = updates_of(0)[[0, 2, 3, 4]].mean(dim=0) + updates_of(1)[[0, 2, 3, 4]].mean(dim=0)
    assert_close(model.weights, expected)


def test_a_client_that_was_never_trusted_takes_nothing_along() -> None:
    model = Model()
    for server_round in range(2):
        updates = updates_of(server_round)
        assert_close(model.step(updates, WITHOUT_1, [1]), updates[[0, 2, 3, 4]].mean(dim=0))


def test_clients_come_and_go() -> None:
    model, expected = Model(), torch.zeros(DIM)
    half = [0.5, 0.5]
    for ids in ((5, 9), (1, 9), (5, 7)):
        updates = updates_of(sum(ids), 2)
        model.step(updates, half, [], ids)
        expected += updates.mean(dim=0)
    assert_close(model.weights, expected)
    assert model.state["clients/ids"].tolist() == [1, 5, 7, 9]
    assert model.state["clients/contributed_weight"].tolist() == [0.5, 1.0, 0.5, 1.0]
    model.step(updates_of(3, 2), [1.0, 0.0], [1], (5, 9))
    assert model.state["clients/contributed_weight"][3] == 0


def test_when_everything_came_from_the_pruned_nothing_is_taken_back() -> None:
    model = Model()
    model.step(updates_of(0, 2), [1.0, 0.0], [1])
    found = model.step(updates_of(1, 2), [0.0, 1.0], [0])
    assert_close(found, updates_of(1, 2)[1])


def test_only_rounds_in_a_row_count() -> None:
    model, plain = Model(after=3), torch.zeros(DIM)
    for server_round, out in enumerate((False, True, True, False, True, True)):
        updates = updates_of(server_round)
        model.step(updates, WITHOUT_1 if out else EVEN, [1] if out else [])
        plain += torch.tensor(WITHOUT_1 if out else EVEN) @ updates
        assert_close(model.weights, plain)
    model.step(updates_of(9), WITHOUT_1, [1])
    plain += torch.tensor(WITHOUT_1) @ updates_of(9)
    assert float((model.weights - plain).norm()) > 0.01
    assert model.state["clients/contributed_weight"][1] == 0


@pytest.mark.parametrize("after", [None, 3])
def test_ariba_keeps_contributions_only_if_asked(after: int | None) -> None:
    _, state = Ariba(take_back_after=after)(cohort(updates_of(0)), {})
    assert ("clients/contributed" in state) is (after is not None)


def test_ariba_forgets_a_backdoor_that_was_found_late() -> None:
    """Four of twelve send a common direction; once out, they leave nothing of it behind."""
    honest = torch.randn(12, 3, DIM, generator=torch.Generator().manual_seed(1))
    bad = torch.nn.functional.one_hot(torch.tensor(0), DIM).float() * 3
    left = {}
    for after in (None, 2):
        rule, state, weights = Ariba(take_back_after=after, max_excess=None), {}, torch.zeros(DIM)
        for server_round in range(3):
            sent = honest[:, server_round].clone()
            sent[:4] += bad
            judged = remembering(rule, cohort(sent, server_round + 1), state, server_round > 0)
            weights, state = weights + judged[0], judged[1]
        left[after] = float(weights[0] - honest[4:, :, 0].mean(dim=0).sum())
    assert left[None] > 0.5 and abs(left[2]) < 0.25 * left[None]


def remembering(rule: Ariba, this: Cohort, state: State, found: bool) -> tuple[Tensor, State]:
    """One round of ``rule`` whose prune rule finds the first four, or nobody."""
    ruled = rule.model_copy(update={"prune": Told(found=found), "sharing": None, "clip": False})
    aggregation, state = ruled(this, state)
    return aggregation.update, state


class Told:
    """A prune rule that is told whom to prune."""

    def __init__(self, found: bool) -> None:
        self.found = found

    def scores(self, counts: Tensor, spread: float) -> Tensor:
        return torch.zeros_like(counts)

    def __call__(self, counts: Tensor, spread: float) -> Tensor:
        pruned = torch.zeros(len(counts), dtype=torch.bool)
        pruned[:4] = self.found
        return pruned
