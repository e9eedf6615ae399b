"""Confidence intervals for rates over comparisons that share people.

Pairs of images are not independent: a person who is hard to recognise is hard in every pair. The
interval therefore resamples *identities* (the vertex bootstrap of Fogliato, Patil and Perona,
"Confidence Intervals for Error Rates in 1:1 Matching Tasks", IJCV 2024,
https://arxiv.org/abs/2306.01198; Bolle, Ratha and Pankanti 2004 call it the subset bootstrap).
A person drawn w times counts w times in a rate over his own pairs and w_i w_j times in a rate over
pairs of people; two copies of one person are no impostor pair and count nothing.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A rate with its interval and its support.

    Attributes:
        rate: The measured rate, in [0, 1].
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: The number of comparisons behind the rate.
        n_identities: The number of people behind these comparisons.
    """

    rate: float
    low: float
    high: float
    n: int
    n_identities: int


@dataclass(frozen=True)
class Acceptance:
    """How many comparisons were accepted, by identity or by pair of identities.

    Attributes:
        accepted: ``(n_identities,)`` or ``(n_identities, n_identities)`` accepted comparisons.
        total: The comparisons made, in the same shape. A matrix has a zero diagonal; whether a
            pair of people stands at [i, j], at [j, i] or divided over both makes no difference.
    """

    accepted: NDArray[np.float64]
    total: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Checks shapes and counts."""
        shape = self.total.shape
        if self.accepted.shape != shape or len(shape) not in (1, 2) or len(set(shape)) != 1:
            raise ValueError(
                "accepted and total need one shape, (n_identities,) or "
                f"(n_identities, n_identities), got {self.accepted.shape} and {shape}"
            )
        if len(shape) == 2 and np.any(np.diagonal(self.total) != 0):
            raise ValueError("total needs a zero diagonal, got comparisons within an identity")
        if np.any(self.accepted < 0) or np.any(self.accepted > self.total):
            raise ValueError("accepted needs to lie in 0..total, got a count outside")
        if self.total.sum() <= 0:
            raise ValueError("a rate needs at least one comparison, got none")

    @property
    def n(self) -> int:
        """The number of comparisons."""
        return int(self.total.sum())

    @property
    def rate(self) -> float:
        """The share of comparisons that were accepted."""
        return float(self.accepted.sum() / self.total.sum())

    @property
    def n_identities(self) -> int:
        """The number of identities that took part in a comparison."""
        involved = self.total
        if involved.ndim == 2:
            involved = involved.sum(axis=0) + involved.sum(axis=1)
        return int(np.count_nonzero(involved))

    def estimate(
        self, n_draws: int, rng: np.random.Generator, confidence: float = 0.95
    ) -> Estimate:
        """Returns the rate with its percentile interval over ``n_draws`` identity bootstraps.

        Draws without a comparison are left out. Where all draws agree (every comparison accepted,
        none, or one single identity) the bootstrap cannot see its own uncertainty, and Wilson's
        interval for one trial per identity stands in: wide, as so few people allow.

        Raises:
            ValueError: If ``confidence`` is outside (0, 1) or ``n_draws`` is below
                2 / (1 - confidence), where the percentiles are nothing but the extremes.
        """
        _check_confidence(confidence)
        if n_draws * (1 - confidence) < 2 * (1 - 1e-9):
            raise ValueError(
                f"the bootstrap needs n_draws >= 2 / (1 - confidence), "
                f"got n_draws={n_draws}, confidence={confidence}"
            )
        rates = self._resampled_rates(identity_weights(len(self.total), n_draws, rng))
        if len(rates) == 0 or np.ptp(rates) <= 1e-12:
            low, high = wilson(self.rate * self.n_identities, self.n_identities, confidence)
        else:
            tail = (1 - confidence) / 2
            low, high = (float(q) for q in np.quantile(rates, [tail, 1 - tail]))
        return Estimate(self.rate, low, high, self.n, self.n_identities)

    def _resampled_rates(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rate under each row of ``weights`` that holds a comparison."""
        if self.total.ndim == 1:
            accepted, total = weights @ self.accepted, weights @ self.total
        else:
            accepted = ((weights @ self.accepted) * weights).sum(axis=1)
            total = ((weights @ self.total) * weights).sum(axis=1)
        rates: NDArray[np.float64] = accepted[total > 0] / total[total > 0]
        return rates


def identity_weights(
    n_identities: int, n_draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns ``(n_draws, n_identities)``: how often each bootstrap draws each identity.

    Every row sums to ``n_identities``.
    """
    drawn = rng.integers(n_identities, size=(n_draws, n_identities))
    drawn += n_identities * np.arange(n_draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_draws * n_identities)
    return counts.reshape(n_draws, n_identities).astype(np.float64)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval for a binomial proportion of independent trials.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Args:
        successes: The number of successes, in [0, n]; an expected number may be broken.
        n: The number of trials, 1 or more.
        confidence: The two-sided coverage, in (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"wilson needs n >= 1 and 0 <= successes <= n, got n={n}, successes={successes}"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = rate + z**2 / (2 * n)
    spread = z * sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def _check_confidence(confidence: float) -> None:
    """Refuses a coverage outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence needs to lie in (0, 1), got {confidence}")
