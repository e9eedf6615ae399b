import pytest
import torch

from fedface.aggregation.distances import centred_gram
from fedface.aggregation.geometric_median import (
    GeometricMedian,
    distances_from_mean,
)
from tests.fedface.aggregation.properties import (
    PROPERTIES,
    aggregate,
    make_cohort,
    random_updates,
)


def smoothed_weiszfeld(updates, alphas, nu, iterations):
    """The algorithm of Pillutla et al., in loops."""
    n = len(updates)
    weights = [a / sum(alphas) for a in alphas]
    for _ in range(iterations):
        v = sum(w * u for w, u in zip(weights, updates, strict=True))
        betas = [alphas[i] / max(nu, float((v - updates[i]).norm())) for i in range(n)]
        weights = [b / sum(betas) for b in betas]
    v = sum(w * u for w, u in zip(weights, updates, strict=True))
    return v.float(), torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 3, 30])
@pytest.mark.parametrize("nu", [1e-6, 5.0])
def test_matches_the_paper(iterations, nu):
    updates = random_updates(7, 40) * torch.arange(1, 8)[:, None]
    rule = GeometricMedian(max_iterations=iterations, smoothing=nu)
    result = aggregate(rule, make_cohort(updates))
    expected, weights = smoothed_weiszfeld(updates.double(), [1.0] * 7, nu, iterations)
    torch.testing.assert_close(result.update, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.trust, weights, rtol=1e-9, atol=0)


def test_weighs_by_examples_if_asked():
    updates, counts = random_updates(5, 30), [1, 9, 3, 3, 20]
    cohort = make_cohort(updates, torch.tensor(counts))
    result = aggregate(GeometricMedian(weighting="examples", max_iterations=4), cohort)
    expected, _ = smoothed_weiszfeld(updates.double(), [float(c) for c in counts], 1e-6, 4)
    torch.testing.assert_close(result.update, expected, rtol=1e-6, atol=1e-7)


def test_the_default_reaches_the_minimum():
    """There the unit vectors towards the updates cancel."""
    updates = random_updates(8, 20) * torch.arange(1, 9)[:, None]
    result = aggregate(GeometricMedian(), make_cohort(updates))
    towards = updates.double() - result.update.double()
    units = towards / towards.norm(dim=1, keepdim=True)
    assert float(units.sum(dim=0).norm()) < 1e-5
    torch.testing.assert_close(result.scores, towards.norm(dim=1), rtol=1e-6, atol=1e-6)


def test_in_one_dimension_it_is_the_median():
    updates = torch.tensor([[0.0], [1.0], [2.0], [10.0], [1000.0]])
    update = aggregate(GeometricMedian(), make_cohort(updates)).update
    torch.testing.assert_close(update, torch.tensor([2.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_four_outliers_of_ten_move_it_less_than_the_honest_spread(size):
    updates = random_updates(10, 500)
    honest = updates[4:].double()
    updates[:4] = size
    spread = (honest - honest.mean(dim=0)).norm(dim=1).max()
    result = aggregate(GeometricMedian(), make_cohort(updates))
    assert float((result.update.double() - honest.mean(dim=0)).norm()) < spread
    assert bool((result.scores[:4] > result.scores[4:].max()).all())


def test_the_papers_few_iterations_leave_much_of_a_huge_outlier():
    updates = random_updates(10, 500)
    updates[0] = 1e6
    rule = GeometricMedian(max_iterations=4)
    assert float(aggregate(rule, make_cohort(updates)).update.norm()) > 100


def test_half_of_the_clients_break_it():
    updates = random_updates(10, 50)
    updates[:6] = 1e6
    assert float(aggregate(GeometricMedian(), make_cohort(updates)).update.min()) > 1e5


def test_distances_match_the_definition_beside_a_huge_update():
    updates = random_updates(5, 300)
    updates[0] *= 1e30
    weights = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean = weights[1:] @ updates[1:].double()
    expected = (updates.double() - mean).norm(dim=1)
    for block in (7, 1000):
        found = distances_from_mean(centred_gram(updates, block), weights)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_identical_majority_and_opposite_extremes_stay_finite():
    updates = torch.zeros(5, 6)
    updates[4] = 3.0
    result = aggregate(GeometricMedian(), make_cohort(updates))
    torch.testing.assert_close(result.update, torch.zeros(6), rtol=0, atol=1e-5)
    updates = torch.tensor([[3e38, 0.0], [-3e38, 0.0]])
    assert bool(aggregate(GeometricMedian(), make_cohort(updates)).update.isfinite().all())


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_property(prop, weighting):
    prop(GeometricMedian(weighting=weighting))
