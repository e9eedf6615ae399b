"""Randomised bits, accounted exactly: the Poisson binomial mechanism and its composition.

A release of the Poisson binomial mechanism is a number of random bits, each one with probability
1/2 + t for a t in [-theta, theta] that the record decides. n such bits of one record, over
coordinates, trials, releases and parties, adaptively chosen or not, never tell two neighbours apart
better than n independent bits of

* Bernoulli(1/2 + theta) against Bernoulli(1/2 - theta) under *replace_one*: every bit is
  epsilon_0-DP with exp(epsilon_0) = (1/2 + theta) / (1/2 - theta), and each epsilon_0-DP mechanism
  is a post-processing of that pair, randomised response (Kairouz, Oh, Viswanath, "The Composition
  Theorem for Differential Privacy", ICML 2015, https://arxiv.org/abs/1311.0776);
* Bernoulli(1/2 + theta) against Bernoulli(1/2), in both directions, under *zero_out*: any
  Bernoulli(1/2 + t) is the first with bits flipped at random, which leaves Bernoulli(1/2) as it is.

A record at a corner of the cube attains them, so the account is exact and not a bound: delta is the
difference of two binomial tails. The papers of the mechanism bound its Renyi divergence instead.
There is no amplification by subsampling, for the reasons in :mod:`fedface.privacy.gaussian`, and no
sum over parties under encryption hides a party's own bits.
"""

import math
from functools import lru_cache
from typing import Literal

from scipy.special import betainc

Relation = Literal["replace_one", "zero_out"]

MOST_BITS = 10**9
"""The most bits that are accounted; up to there the tails were found right to 2e-11 (mpmath)."""


def delta(epsilon: float, theta: float, n_bits: int, relation: Relation) -> float:
    """Returns the smallest delta such that ``n_bits`` bits together are (epsilon, delta)-DP.

    Args:
        epsilon: At least 0.
        theta: In (0, 1/2).
        n_bits: How many, all releases of one record together; 0 gives 0.
        relation: Which neighbours.

    Raises:
        ValueError: If a number is out of range.
    """
    _check(theta, n_bits)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon needs to be finite and at least 0, got {epsilon}")
    return _delta(epsilon, theta, n_bits, relation)


def epsilon(theta: float, n_bits: int, relation: Relation, delta: float) -> float:
    """Returns the smallest epsilon such that ``n_bits`` bits together are (epsilon, delta)-DP.

    By bisection, to 1e-9 relative, rounded up: the epsilon returned holds.

    Args:
        theta: In (0, 1/2).
        n_bits: As for :func:`delta`.
        relation: Which neighbours.
        delta: In (0, 1).

    Raises:
        ValueError: If a number is out of range.
    """
    _check(theta, n_bits)
    _check_delta(delta)
    if _delta(0.0, theta, n_bits, relation) <= delta:
        return 0.0
    low, high = 0.0, n_bits * _largest_loss(theta, relation)  # pure DP: delta is 0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _delta(middle, theta, n_bits, relation) <= delta:
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=1024)
def theta_for(epsilon: float, delta: float, n_bits: int, relation: Relation) -> float:
    """Returns the largest theta for which ``n_bits`` bits together are (epsilon, delta)-DP.

    By bisection, to 1e-9 relative, rounded down: the theta returned suffices. A smaller theta is a
    post-processing of a larger one, so delta rises with theta.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).
        n_bits: At least 1.
        relation: Which neighbours.

    Raises:
        ValueError: If a number is out of range.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon needs to be finite and above 0, got {epsilon}")
    _check_delta(delta)
    _check(0.25, n_bits)
    if n_bits < 1:
        raise ValueError(f"n_bits needs to be at least 1, got {n_bits}")
    low, high = 0.0, 0.5 - 1e-9
    if _delta(epsilon, high, n_bits, relation) <= delta:
        return high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _delta(epsilon, middle, n_bits, relation) <= delta:
            low = middle
        else:
            high = middle
    return low


def _delta(epsilon: float, theta: float, n_bits: int, relation: Relation) -> float:
    one, none = 0.5 + theta, 0.5
    if relation == "replace_one":
        return _one_way(epsilon, n_bits, one, 0.5 - theta)
    # Against ones, or with zeros and ones exchanged: both directions as a higher against a lower.
    return max(_one_way(epsilon, n_bits, one, none), _one_way(epsilon, n_bits, none, 0.5 - theta))


def _one_way(epsilon: float, n: int, p: float, q: float) -> float:
    """max over events of P - exp(epsilon) Q, for n bits of p against n bits of q < p.

    The loss s log(p / q) + (n - s) log((1 - p) / (1 - q)) rises with the number s of ones, so the
    best event is that s is large enough for the loss to exceed epsilon.
    """
    up, down = math.log(p / q), math.log((1 - p) / (1 - q))
    least = max(0, math.floor((epsilon - n * down) / (up - down)) + 1)
    if least > n:
        return 0.0
    if least == 0:
        return max(0.0, 1 - math.exp(epsilon))
    high, low = (float(betainc(least, n - least + 1, x)) for x in (p, q))
    weighted = math.exp(min(0.0, epsilon + math.log(low))) if low > 0 else 0.0
    return max(0.0, high - weighted)


def _largest_loss(theta: float, relation: Relation) -> float:
    """The loss of one bit that no bit exceeds, in either direction."""
    low = 0.5 - theta
    return math.log((0.5 + theta) / low) if relation == "replace_one" else math.log(0.5 / low)


def _check(theta: float, n_bits: int) -> None:
    if not 0 < theta < 0.5:
        raise ValueError(f"theta needs to be in (0, 1/2), got {theta}")
    if not 0 <= n_bits <= MOST_BITS:
        raise ValueError(f"n_bits needs to be in 0..{MOST_BITS}, got {n_bits}")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta needs to be in (0, 1), got {delta}")
