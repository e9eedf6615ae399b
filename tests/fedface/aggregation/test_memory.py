import pytest
import torch

from fedface.aggregation.memory import (
    COUNTS,
    IDS,
    PRUNED,
    RESIDUALS,
    SEEN,
    add_residuals,
    affinity,
    remember,
    unit_residuals,
)
from tests.fedface.aggregation.properties import make_cohort, random_updates


def step(state, ids, updates, counts=None, pruned=()):
    n = len(ids)
    counts = (
        torch.zeros(n, dtype=torch.float64) if counts is None else torch.tensor(counts).double()
    )
    mask = torch.tensor([i in pruned for i in ids])
    cohort = make_cohort(updates, client_ids=tuple(ids))
    return add_residuals(remember(state, cohort, counts, mask), cohort)


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


def test_affinity_is_the_mean_of_the_nearest_cosines():
    rows = random_updates(7, 5)
    result = affinity(rows)
    for i in range(7):
        cosines = sorted(
            (float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for j in range(7) if j != i),
            reverse=True,
        )
        assert float(result[i]) == pytest.approx(sum(cosines[:3]) / 3, abs=1e-6)


def test_affinity_of_few_or_zero_rows():
    assert affinity(torch.ones(1, 4)).tolist() == [0]
    torch.testing.assert_close(affinity(torch.ones(2, 4)), torch.ones(2).double())
    assert affinity(torch.zeros(5, 4)).tolist() == [0] * 5


def test_colluders_stand_out_by_affinity_as_rounds_add_up():
    g = torch.Generator().manual_seed(0)
    shared, state, gaps = torch.randn(400, generator=g), {}, []
    for _ in range(8):
        updates = torch.randn(12, 400, generator=g)
        updates[:4] += 0.3 * shared
        state = step(state, range(12), updates)
        score = affinity(state[RESIDUALS])
        gaps.append(float(score[:4].min() - score[4:].max()))
    assert gaps[-1] > 0.05 and gaps[-1] > gaps[0]


def test_another_model_is_refused():
    state = step({}, (0, 1, 2), random_updates(3, 6))
    with pytest.raises(ValueError, match="dim 6, got dim 8"):
        step(state, (0, 1, 2), random_updates(3, 8))
