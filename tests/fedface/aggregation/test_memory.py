import pytest
import torch

from fedface.aggregation.memory import (
    COUNTS,
    IDS,
    PRUNED,
    RESIDUALS,
    SEEN,
    SHUT_OUT,
    add_residuals,
    remember,
    rows_of,
    unit_residuals,
)
from tests.fedface.aggregation.properties import make_cohort, random_updates


def cohort_of(updates, ids):
    return make_cohort(updates, client_ids=tuple(ids))


def nothing(updates, ids):
    """A cohort in which nobody has outliers."""
    n = len(ids)
    counts, pruned = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
    return cohort_of(updates, ids), counts, pruned


def step(state, ids, updates, counts=None, pruned=()):
    n = len(ids)
    counts = (
        torch.zeros(n, dtype=torch.float64) if counts is None else torch.tensor(counts).double()
    )
    mask = torch.tensor([i in pruned for i in ids])
    cohort = make_cohort(updates, client_ids=tuple(ids))
    later, products = add_residuals(remember(state, cohort, counts, mask), cohort)
    rows = later[RESIDUALS][rows_of(later, cohort)].double()
    torch.testing.assert_close(products, rows @ rows.T, atol=1e-5, rtol=1e-5)
    return later


def test_memory_adds_up_per_client_whoever_comes():
    rounds = [(1, 5, 7), (0, 5, 9), (1, 5, 9)]
    expected, state = {}, {}
    for number, ids in enumerate(rounds):
        updates = random_updates(3, 6, seed=number)
        units = updates.double() / updates.double().norm(dim=1, keepdim=True)
        for i, unit in zip(ids, units, strict=True):
            row = expected.setdefault(i, [0, 0, 0.0, torch.zeros(6).double()])
            row[0] += 1
            row[1] += int(i == 5)
            row[2] += 0.5 * i
            row[3] = row[3] + unit - units.mean(dim=0)
        before = {key: value.clone() for key, value in state.items()}
        new = step(state, ids, updates, [0.5 * i for i in ids], pruned=(5,))
        assert state.keys() == before.keys()
        assert all(torch.equal(state[key], before[key]) for key in before)
        state = new
    assert state[IDS].tolist() == sorted(expected) == [0, 1, 5, 7, 9]
    for row, i in enumerate(sorted(expected)):
        seen, pruned, count, residual = expected[i]
        assert int(state[SEEN][row]) == seen and int(state[PRUNED][row]) == pruned
        assert float(state[COUNTS][row]) == count
        torch.testing.assert_close(state[RESIDUALS][row].double(), residual)


def test_residuals_are_unit_updates_without_the_mean():
    updates = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    expected = torch.tensor([[0.3, -0.1], [-0.3, 0.1], [0.0, 0.0]])
    torch.testing.assert_close(unit_residuals(updates), expected)
    torch.testing.assert_close(unit_residuals(1e30 * updates), expected)
    assert not bool(unit_residuals(torch.zeros(3, 4)).any())


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_earlier_residuals_fade_for_those_who_come(decay):
    first, second = random_updates(3, 6, seed=1), random_updates(3, 6, seed=2)
    state = step({}, (0, 1, 2), first)
    later, _ = add_residuals(
        remember(state, *nothing(second, (0, 1, 4))), cohort_of(second, (0, 1, 4)), decay
    )
    expected = decay * unit_residuals(first)[:2] + unit_residuals(second)[:2]
    torch.testing.assert_close(later[RESIDUALS][:2], expected)
    torch.testing.assert_close(later[RESIDUALS][2], unit_residuals(first)[2])
    torch.testing.assert_close(later[RESIDUALS][3], unit_residuals(second)[2])


def test_who_is_shut_out_is_kept_by_client():
    state = step({}, (1, 3), random_updates(2, 6))
    assert state[SHUT_OUT].tolist() == [False, False]
    state = step({**state, SHUT_OUT: torch.tensor([False, True])}, (0, 3), random_updates(2, 6))
    assert state[IDS].tolist() == [0, 1, 3] and state[SHUT_OUT].tolist() == [False, False, True]


def test_another_model_is_refused():
    state = step({}, (0, 1, 2), random_updates(3, 6))
    with pytest.raises(ValueError, match="dim 6, got dim 8"):
        step(state, (0, 1, 2), random_updates(3, 8))
