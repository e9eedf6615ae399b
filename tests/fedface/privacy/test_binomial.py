"""The account of random bits, against exact fractions, brute force, and other accountants."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from fedface.privacy import binomial, gaussian

RELATIONS = ("replace_one", "zero_out")


def pairs(theta: Fraction, relation: str) -> list[tuple[Fraction, Fraction]]:
    """(chance of a one, neighbour's chance), in both directions."""
    half = Fraction(1, 2)
    p, q = half + theta, half - theta if relation == "replace_one" else half
    return [(p, q), (q, p)]


def exact(weight: Fraction, theta: Fraction, n: int, relation: str) -> Fraction:
    """delta by its definition, for weight = exp(epsilon): the positive parts of P - weight Q."""

    def chances(p: Fraction) -> list[Fraction]:
        return [math.comb(n, s) * p**s * (1 - p) ** (n - s) for s in range(n + 1)]

    return max(
        sum((max(a - weight * b, Fraction(0)) for a, b in zip(chances(p), chances(q), strict=True)))
        for p, q in pairs(theta, relation)
    )


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("theta", [Fraction(1, 100), Fraction(1, 4), Fraction(9, 20)])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_delta_is_that_of_exact_fractions(relation: str, theta: Fraction, n: int) -> None:
    for weight in (Fraction(1), Fraction(11, 10), Fraction(3), Fraction(50)):
        wanted = float(exact(weight, theta, n, relation))
        found = binomial.delta(math.log(weight), float(theta), n, relation)  # type: ignore[arg-type]
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_pair_of_records_of_the_cube_is_told_apart_better(relation: str) -> None:
    """Brute force over the mechanism's own outputs: two coordinates of two trials, one release."""
    theta, grid = 0.2, np.linspace(-1, 1, 3)
    counts = list(itertools.product(range(3), repeat=2))

    def output(x: tuple[float, ...]) -> np.ndarray:
        return np.array(
            [
                math.prod(binom.pmf(k, 2, 0.5 + theta * v) for k, v in zip(c, x, strict=True))
                for c in counts
            ]
        )

    records = list(itertools.product(grid, repeat=2))
    for epsilon in (0.0, 0.5, 1.5, 3.0):
        claimed = binomial.delta(epsilon, theta, 4, relation)  # type: ignore[arg-type]
        others = records if relation == "replace_one" else [(0.0, 0.0)]
        worst = max(
            float(np.maximum(a - math.exp(epsilon) * b, 0).sum())
            for x in records
            for y in others
            for a, b in ((output(x), output(y)), (output(y), output(x)))
        )
        assert worst <= claimed + 1e-12
        assert worst == pytest.approx(claimed, abs=1e-12)  # a corner of the cube attains it


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_choice_that_depends_on_earlier_bits_gains_nothing(relation: str) -> None:
    """The second bit's pair may be chosen after the first is seen: all choices, all outcomes."""
    theta = 0.3
    choices = [-theta, -theta / 2, 0.0, theta / 2, theta]
    others = choices if relation == "replace_one" else [0.0]
    one_bit = list(itertools.product(choices, others))
    claimed = binomial.delta(0.7, theta, 2, relation)  # type: ignore[arg-type]
    worst = 0.0
    for first, *after in itertools.product(one_bit, repeat=3):
        for side in (0, 1):
            gap = 0.0
            for b1, b2 in itertools.product((0, 1), repeat=2):
                mass = [1.0, 1.0]
                for bit, chosen in ((b1, first), (b2, after[b1])):
                    for k in (0, 1):
                        chance = 0.5 + chosen[k if side == 0 else 1 - k]
                        mass[k] *= chance if bit else 1 - chance
                gap += max(0.0, mass[0] - math.exp(0.7) * mass[1])
            worst = max(worst, gap)
    assert worst == pytest.approx(claimed, abs=1e-12)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("theta", "n"), [(0.25, 512), (0.01, 40_960), (0.004, 400_000)])
def test_many_bits_against_the_sum_over_all_counts(relation: str, theta: float, n: int) -> None:
    for delta in (1e-3, 1e-5, 1e-8):
        epsilon = binomial.epsilon(theta, n, relation, delta)  # type: ignore[arg-type]
        s, found = np.arange(n + 1), 0.0
        for p, q in pairs(Fraction(theta), relation):
            one, other = binom.logpmf(s, n, float(p)), binom.logpmf(s, n, float(q))
            counted = (one > epsilon + other) & (one > -1e3)
            gap = -np.expm1(epsilon + other[counted] - one[counted])
            found = max(found, float((np.exp(one[counted]) * gap).sum()))
        assert found == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize("relation", RELATIONS)
def test_many_weak_bits_cost_what_gaussian_noise_of_their_size_does(relation: str) -> None:
    """The central limit: mu = 4 theta sqrt(n) for replace-one, half of it for zero-out."""
    theta, n = 0.002, 1_000_000
    mu = (4 if relation == "replace_one" else 2) * theta * math.sqrt(n)
    found = binomial.epsilon(theta, n, relation, 1e-5)  # type: ignore[arg-type]
    assert found == pytest.approx(gaussian.epsilon(mu, 1e-5), rel=0.02)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_renyi_account_of_the_same_bits_is_never_below(relation: str) -> None:
    """Renyi divergence of a bit, composed, converted (Canonne, Kamath, Steinke 2020, prop. 12)."""
    theta, n, delta = 0.1, 256, 1e-5
    bounds = []
    for order in np.linspace(1.05, 40, 400):
        worst = max(
            math.log(
                float(p) ** order * float(q) ** (1 - order)
                + float(1 - p) ** order * float(1 - q) ** (1 - order)
            )
            / (order - 1)
            for p, q in pairs(Fraction(1, 10), relation)
        )
        converted = n * worst + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        bounds.append(converted)
    found = binomial.epsilon(theta, n, relation, delta)  # type: ignore[arg-type]
    assert found < min(bounds) < 1.3 * found


@pytest.mark.parametrize("relation", RELATIONS)
def test_epsilon_and_theta_are_each_others_inverse_and_hold(relation: str) -> None:
    for epsilon in (0.1, 1.0, 8.0, 100.0):
        theta = binomial.theta_for(epsilon, 1e-5, 320, relation)  # type: ignore[arg-type]
        assert binomial.delta(epsilon, theta, 320, relation) <= 1e-5  # type: ignore[arg-type]
        assert binomial.epsilon(theta, 320, relation, 1e-5) <= epsilon * (1 + 1e-8)  # type: ignore[arg-type]
        if epsilon < 100:
            assert binomial.epsilon(theta * 1.01, 320, relation, 1e-5) > epsilon  # type: ignore[arg-type]


def test_one_bit_is_randomised_response_and_none_is_free() -> None:
    assert binomial.delta(math.log(3), 0.25, 1, "replace_one") == pytest.approx(0, abs=1e-15)
    assert binomial.delta(0.0, 0.25, 1, "replace_one") == pytest.approx(0.5)
    assert binomial.epsilon(0.25, 0, "replace_one", 1e-5) == 0
    assert binomial.delta(0.0, 0.25, 0, "zero_out") == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial.delta(-1.0, 0.1, 4, "replace_one"),
        lambda: binomial.delta(math.inf, 0.1, 4, "replace_one"),
        lambda: binomial.delta(1.0, 0.5, 4, "replace_one"),
        lambda: binomial.delta(1.0, 0.0, 4, "replace_one"),
        lambda: binomial.delta(1.0, 0.1, -1, "replace_one"),
        lambda: binomial.epsilon(0.1, 4, "replace_one", 1.0),
        lambda: binomial.theta_for(0.0, 1e-5, 4, "replace_one"),
        lambda: binomial.theta_for(1.0, 1e-5, 0, "replace_one"),
        lambda: binomial.epsilon(0.1, binomial.MOST_BITS + 1, "replace_one", 1e-5),
    ],
)
def test_what_is_out_of_range_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r"needs to be"):
        call()  # type: ignore[operator]
