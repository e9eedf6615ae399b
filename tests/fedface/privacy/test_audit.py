import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from fedface.backbones import SmallConv
from fedface.privacy import EmbeddingRelease, Unprotected, gaussian
from fedface.privacy.audit import (
    Decisions,
    audit,
    clopper_pearson,
    distinguishing_scores,
    epsilon_lower_bound,
    mu_lower_bound,
)
from fedface.random import numpy_stream, stream
from fedface.vertical.passive import PassiveSettings
from fedface.vertical.scale import Sphere

DELTA = 1e-5


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (1, 7), (3, 20), (19, 20), (5, 5)])
def test_clopper_pearson_is_where_the_binomial_tails_are(successes: int, n: int) -> None:
    low, high = clopper_pearson(successes, n, 0.9)
    if successes > 0:  # at the low end, as many successes or more have a probability of 5 %
        assert binom.sf(successes - 1, n, low) == pytest.approx(0.05)
    else:
        assert low == 0
    if successes < n:
        assert binom.cdf(successes, n, high) == pytest.approx(0.05)
    else:
        assert high == 1


def test_clopper_pearson_covers_the_truth_at_least_as_often_as_it_says() -> None:
    n = 40
    ends = [clopper_pearson(k, n, 0.9) for k in range(n + 1)]
    for p in (0.02, 0.3, 0.5, 0.97):
        covered = sum(binom.pmf(k, n, p) for k, (low, high) in enumerate(ends) if low <= p <= high)
        assert 0.9 <= covered < 0.999


def test_epsilon_is_the_larger_of_both_directions() -> None:
    decisions = Decisions(90, 100, 20, 100)
    low, high = clopper_pearson(90, 100)[0], clopper_pearson(20, 100)[1]
    expected = max(math.log((low - 0.01) / high), math.log((1 - high - 0.01) / (1 - low)))
    assert epsilon_lower_bound(decisions, 0.01) == pytest.approx(expected)
    assert expected == pytest.approx(math.log((1 - high - 0.01) / (1 - low)))  # the second one
    other = Decisions(80, 100, 10, 100)  # mirrored: the first direction is the larger one
    low, high = clopper_pearson(80, 100)[0], clopper_pearson(10, 100)[1]
    assert epsilon_lower_bound(other, 0.01) == pytest.approx(math.log((low - 0.01) / high))
    assert mu_lower_bound(other) == pytest.approx(norm.ppf(low) - norm.ppf(high))


@pytest.mark.parametrize(
    "decisions",
    [
        Decisions(5, 10, 5, 10),
        Decisions(0, 10, 10, 10),
        Decisions(1, 1, 0, 1),
        Decisions(0, 9, 0, 9),
    ],
)
def test_nothing_proved_is_zero(decisions: Decisions) -> None:
    assert epsilon_lower_bound(decisions, DELTA) == 0
    assert mu_lower_bound(decisions) == 0


def test_bounds_stay_finite_where_every_decision_is_right() -> None:
    decisions = Decisions(1000, 1000, 0, 1000)
    assert 5 < epsilon_lower_bound(decisions, 0.0) < math.log(1000)
    assert 5 < mu_lower_bound(decisions) < 6


@pytest.mark.parametrize("mu", [0.5, 1.5, 3.0])
def test_a_gaussian_audit_is_tight_and_stays_below_what_it_audits(mu: float) -> None:
    rng = numpy_stream(0, "scores", int(10 * mu))
    found = audit(rng.normal(mu, 1, 20000), rng.normal(0, 1, 20000), DELTA, rng, 0.99)
    assert mu - 0.2 < found.mu <= mu
    accounted = gaussian.epsilon(mu, DELTA)
    assert found.epsilon <= accounted
    assert gaussian.epsilon(mu - 0.2, DELTA) < found.epsilon_gaussian <= accounted
    assert found.n_runs == 40000


def test_the_stated_confidence_holds_over_many_audits() -> None:
    """200 audits at 90 %: one in ten may prove too much, and they still prove most of it."""
    mu, rng = 1.0, numpy_stream(0, "many audits")
    accounted = gaussian.epsilon(mu, 0.01)
    found = [
        audit(rng.normal(mu, 1, 400), rng.normal(0, 1, 400), 0.01, rng, 0.9) for _ in range(200)
    ]
    assert sum(a.mu > mu for a in found) <= binom.isf(1e-3, 200, 0.1)
    assert sum(a.epsilon > accounted for a in found) <= binom.isf(1e-3, 200, 0.1)
    assert np.mean([a.mu for a in found]) > 0.6 * mu


def test_randomised_response_pins_epsilon_at_log_three() -> None:
    """A pure-DP mechanism that is not Gaussian: right with probability 3/4."""
    rng = numpy_stream(0, "coin")
    inside, outside = (rng.random(20000) < p for p in (0.75, 0.25))
    found = audit(inside, outside, DELTA, rng)
    assert 0.92 * math.log(3) < found.epsilon <= math.log(3)


def test_thresholds_are_not_chosen_on_the_runs_that_prove() -> None:
    """Scores that tell nothing: the best of many thresholds would, on the same runs, most times."""
    rng = numpy_stream(0, "nothing")
    found = [audit(rng.random(300), rng.random(300), DELTA, rng, 0.5) for _ in range(150)]
    assert np.mean([a.mu > 0 for a in found]) < 0.35
    assert np.mean([a.epsilon > 0 for a in found]) < 0.35


def embedding_audit(release, releases: int, n_runs: int, neighbour=-1.0, seed: int = 0):
    u = torch.zeros(16)
    u[0] = 1.0
    inside, outside = distinguishing_scores(
        release.release, u, neighbour * u, (u, neighbour * u), n_runs, releases, stream(seed, "z")
    )
    return audit(inside, outside, DELTA, numpy_stream(seed, "halves"), 0.99)


@pytest.mark.parametrize(("epsilon", "releases"), [(1.0, 1), (4.0, 1), (16.0, 1), (4.0, 5)])
def test_released_embeddings_stay_under_the_accounted_epsilon(epsilon, releases) -> None:
    release = EmbeddingRelease(epsilon=epsilon, n_releases=releases)
    found = embedding_audit(release, releases, 4000)
    assert found.epsilon <= found.epsilon_gaussian <= epsilon
    assert found.mu > gaussian.mu(2.0, release.noise, releases) - 0.25
    absent = embedding_audit(release, releases, 4000, neighbour=0.0)
    assert absent.epsilon_gaussian <= release.cost(releases, DELTA).zero_out < epsilon


def test_two_thirds_of_the_noise_is_found_out_and_three_halves_is_not() -> None:
    right = EmbeddingRelease(epsilon=4.0, n_releases=1)
    less = EmbeddingRelease(sigma=right.noise * 2 / 3, n_releases=1)
    more = EmbeddingRelease(sigma=right.noise * 3 / 2, n_releases=1)
    assert embedding_audit(less, 1, 4000).epsilon_gaussian > 4.0
    assert embedding_audit(right, 1, 4000).epsilon_gaussian <= 4.0
    assert embedding_audit(more, 1, 4000).epsilon_gaussian < 2.6


def test_releases_that_were_not_counted_are_found_out() -> None:
    """Noise for one release, and five of them: an accountant that forgets to compose."""
    release = EmbeddingRelease(epsilon=4.0, n_releases=1)
    assert embedding_audit(release, 5, 2000).epsilon_gaussian > 4.0


def test_without_protection_every_run_is_told_apart() -> None:
    assert embedding_audit(Unprotected(), 1, 500).epsilon > 3.5


def test_a_whole_passive_party_stays_under_its_account() -> None:
    """Through bottom model, scale, clip, noise and ledger: two pictures, every record once."""
    n_runs = 150
    release = EmbeddingRelease(epsilon=8.0, n_releases=1)
    settings = PassiveSettings(
        backbone=SmallConv(widths=(4, 4, 4, 4), embedding_size=4), scale=Sphere(), release=release
    )
    party = settings.build(16, 2 * n_runs, stream(0, "party"))
    x, y = torch.randn(2, 3, 16, 16, generator=stream(0, "pictures"))

    def mechanism(images, rng):
        return party.embed(images, torch.arange(2 * n_runs), rng)

    with torch.no_grad():
        u, v = party.scale(party.bottom(torch.stack([x, y])))
    scores = distinguishing_scores(mechanism, x, y, (u, v), n_runs, 1, stream(0, "noise"))
    found = audit(*scores, DELTA, numpy_stream(0, "halves"))
    assert found.epsilon_gaussian <= 8.0
    with pytest.raises(ValueError, match="budget"):
        mechanism(x.expand(2 * n_runs, -1, -1, -1), stream(1, "noise"))


def test_the_same_seed_gives_the_same_audit() -> None:
    release = EmbeddingRelease(epsilon=4.0, n_releases=1)
    assert embedding_audit(release, 1, 200) == embedding_audit(release, 1, 200)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson(3, 2), "successes <= n"),
        (lambda: clopper_pearson(1, 2, 1.0), "confidence"),
        (lambda: Decisions(2, 1, 0, 1), "positives <= n"),
        (lambda: epsilon_lower_bound(Decisions(1, 2, 1, 2), 1.0), "delta"),
        (lambda: audit(np.zeros(1), np.zeros(5), DELTA, numpy_stream(0)), "in-scores"),
        (lambda: audit(np.zeros(5), np.full(5, np.nan), DELTA, numpy_stream(0)), "NaN"),
        (lambda: audit(np.zeros(5), np.zeros(5), 0.0, numpy_stream(0)), "delta"),
    ],
)
def test_impossible_settings_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mechanism_of_another_shape_is_refused() -> None:
    u = torch.zeros(3)
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        distinguishing_scores(lambda h, rng: h[:1], u, u, (u, u), 2, 1, stream(0))
    with pytest.raises(ValueError, match="n_releases"):
        distinguishing_scores(lambda h, rng: h, u, u, (u, u), 2, 0, stream(0))
