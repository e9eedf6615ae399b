from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from fedface.evaluation.intervals import Acceptance, identity_weights, wilson


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (7, 3000)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_matches_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high))
    low, high = wilson(successes, n, confidence)
    assert 0 <= low < high <= 1


def test_wilson_covers_by_exact_summation():
    """Mean coverage over rates is near nominal; of a half-width interval it is not."""
    n, rates = 30, np.linspace(0.02, 0.98, 49)
    outcomes = np.arange(n + 1)
    intervals = np.array([wilson(k, n) for k in outcomes])
    centre = intervals.mean(axis=1, keepdims=True)
    halved = centre + (intervals - centre) / 2

    def coverage(bounds):
        total = 0.0
        for rate in rates:
            inside = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
            total += sum(binomial(k, n, rate) for k in outcomes[inside])
        return total / len(rates)

    assert 0.94 < coverage(intervals) < 0.965
    assert coverage(halved) < 0.8


def binomial(k, n, rate):
    return comb(n, int(k)) * rate**k * (1 - rate) ** (n - k)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"),
    [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0), (float("nan"), 5, 0.95)],
)
def test_wilson_refuses(successes, n, confidence):
    with pytest.raises(ValueError, match="need"):
        wilson(successes, n, confidence)


def test_weights_are_draws_with_replacement():
    weights = identity_weights(6, 20_000, np.random.default_rng(0))
    assert weights.shape == (20_000, 6)
    assert np.all(weights.sum(axis=1) == 6)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(weights.var(axis=0), 5 / 6, atol=0.04)
    np.testing.assert_allclose(np.cov(weights.T)[0, 1:], -1 / 6, atol=0.04)


def by_pair(rng, m=9):
    total = np.triu(rng.integers(1, 6, (m, m)), 1).astype(float)
    return rng.binomial(total.astype(int), 0.3).astype(float), total


@pytest.mark.parametrize("kind", ["vector", "matrix"])
def test_bootstrap_matches_drawing_people_in_loops(kind):
    rng = np.random.default_rng(1)
    if kind == "vector":
        total = rng.integers(1, 6, 9).astype(float)
        accepted = rng.binomial(total.astype(int), 0.6).astype(float)
    else:
        accepted, total = by_pair(rng)
    estimate = Acceptance(accepted, total).estimate(200, np.random.default_rng(7))
    drawn = np.random.default_rng(7).integers(9, size=(200, 9))
    rates = []
    for people in drawn:
        hits = trials = 0.0
        for i in range(9):
            if kind == "vector":
                hits, trials = hits + accepted[people[i]], trials + total[people[i]]
                continue
            for j in range(9):
                hits += accepted[people[i], people[j]]
                trials += total[people[i], people[j]]
        rates.append(hits / trials)
    expected = np.quantile(rates, [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected))
    assert estimate.rate == pytest.approx(accepted.sum() / total.sum())
    assert estimate.n == total.sum() and estimate.n_identities == 9


def test_the_side_of_the_diagonal_makes_no_difference():
    accepted, total = by_pair(np.random.default_rng(1))
    estimates = [
        Acceptance(a, t).estimate(100, np.random.default_rng(0), 0.9)
        for a, t in [
            (accepted, total),
            (accepted.T, total.T),
            (accepted / 2 + accepted.T / 2, total / 2 + total.T / 2),
        ]
    ]
    assert estimates[0] == estimates[1]
    assert estimates[0].low == pytest.approx(estimates[2].low)


def coverage_of_genuine(n_runs=300, m=40, n_pairs=10):
    """People differ, Beta(2, 1): the mean rate is 2/3; how often is it inside?"""
    rng = np.random.default_rng(0)
    total = np.full(m, float(n_pairs))
    ours = naive = 0
    for _ in range(n_runs):
        accepted = rng.binomial(n_pairs, rng.beta(2, 1, m)).astype(float)
        estimate = Acceptance(accepted, total).estimate(200, rng)
        ours += estimate.low <= 2 / 3 <= estimate.high
        low, high = wilson(accepted.sum(), m * n_pairs)
        naive += low <= 2 / 3 <= high
    return ours / n_runs, naive / n_runs


def coverage_of_impostors(n_runs=300, m=40):
    """A pair matches with probability q_i q_j; q is 0.1 or 0.5, so the mean rate is 0.09."""
    rng = np.random.default_rng(0)
    total = np.triu(np.ones((m, m)), 1)
    ours = naive = 0
    for _ in range(n_runs):
        q = np.where(rng.random(m) < 0.5, 0.1, 0.5)
        accepted = (rng.random((m, m)) < np.outer(q, q)) * total
        estimate = Acceptance(accepted, total).estimate(200, rng)
        ours += estimate.low <= 0.09 <= estimate.high
        low, high = wilson(accepted.sum(), int(total.sum()))
        naive += low <= 0.09 <= high
    return ours / n_runs, naive / n_runs


@pytest.mark.parametrize("simulate", [coverage_of_genuine, coverage_of_impostors])
def test_coverage_holds_over_people_and_fails_over_pairs(simulate):
    ours, naive = simulate()
    assert 0.89 < ours < 0.985
    assert naive < 0.8


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_no_error_among_few_people_is_not_certainty(hit):
    estimate = Acceptance(np.full(10, 50 * hit), np.full(10, 50.0)).estimate(
        100, np.random.default_rng(0)
    )
    assert (estimate.low, estimate.high) == wilson(10 * hit, 10)
    assert estimate.high - estimate.low > 0.2


@pytest.mark.parametrize(
    "acceptance",
    [
        Acceptance(np.array([3.0]), np.array([6.0])),
        Acceptance(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([[0.0, 6.0], [0.0, 0.0]])),
        Acceptance(np.array([0.0, 3.0]), np.array([0.0, 6.0])),
    ],
)
def test_one_or_two_people_give_a_wide_interval(acceptance):
    estimate = acceptance.estimate(100, np.random.default_rng(0))
    assert estimate.rate == 0.5 and estimate.high - estimate.low > 0.6


def test_equal_rates_give_wilson_whatever_rounding_does():
    acceptance = Acceptance(np.full(7, 0.1 * 3), np.full(7, 0.3 * 3))
    estimate = acceptance.estimate(100, np.random.default_rng(0))
    assert (estimate.low, estimate.high) == pytest.approx(wilson(7 / 3, 7))


def test_identities_without_comparisons_are_not_counted():
    total = np.zeros((4, 4))
    total[0, 2] = 5
    assert Acceptance(total * 0, total).n_identities == 2
    assert Acceptance(np.array([0.0, 1.0, 0.0]), np.array([0.0, 2.0, 3.0])).n_identities == 2


@pytest.mark.parametrize(
    ("accepted", "total", "message"),
    [
        (np.zeros(2), np.zeros(3), "one shape"),
        (np.zeros((2, 3)), np.ones((2, 3)), "one shape"),
        (np.zeros(2), np.zeros(2), "at least one comparison"),
        (np.zeros(0), np.zeros(0), "at least one comparison"),
        (np.array([3.0]), np.array([2.0]), "0..total"),
        (np.array([-1.0]), np.array([2.0]), "0..total"),
        (np.zeros((2, 2)), np.ones((2, 2)), "zero diagonal"),
    ],
)
def test_refuses_impossible_counts(accepted, total, message):
    with pytest.raises(ValueError, match=message):
        Acceptance(accepted, total)


@pytest.mark.parametrize(
    ("n_draws", "confidence", "raises"),
    [
        (39, 0.95, True),
        (40, 0.95, False),
        (19, 0.9, True),
        (20, 0.9, False),
        (100, 1.0, True),
    ],
)
def test_needs_enough_draws(n_draws, confidence, raises):
    acceptance = Acceptance(np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    if raises:
        with pytest.raises(ValueError, match="need"):
            acceptance.estimate(n_draws, np.random.default_rng(0), confidence)
    else:
        acceptance.estimate(n_draws, np.random.default_rng(0), confidence)
