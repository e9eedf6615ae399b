"""The Gaussian mechanism, accounted exactly by Gaussian differential privacy (GDP).

Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022 (https://arxiv.org/abs/1905.02383);
the same curve for one release is the analytic Gaussian mechanism of Balle and Wang, ICML 2018
(https://arxiv.org/abs/1805.06530, theorem 8). A release of sensitivity Delta with noise N(0,
sigma^2 I) is mu-GDP with mu = Delta / sigma, n of them are sqrt(n) mu, and mu-GDP is exactly the
curve (epsilon, delta(epsilon)) of :func:`delta`.

There is no amplification by subsampling here, and no parameter for it. It would need an adversary
who does not know which records take part in a batch. In vertical federation the adversary is the
active party: it chooses the aligned ids of every batch and receives one vector per record, so for
the records of a batch the sampling rate is one. An accountant with q = batch / n_records
(SecretFlow's, for example) speaks of an outsider who sees only the final model.
"""

import math
from functools import lru_cache

from scipy.special import erfcx, ndtr

_HALF_PI_ROOT = math.sqrt(math.pi / 2)
_ROOT_TWO = math.sqrt(2)


def mu(sensitivity: float, sigma: float, n_releases: int = 1) -> float:
    """Returns the GDP parameter sqrt(n_releases) * sensitivity / sigma.

    Args:
        sensitivity: Delta > 0, the largest distance of one release between two neighbours.
        sigma: Standard deviation > 0 of the noise in each coordinate.
        n_releases: Releases of the same record, each with fresh noise; 0 gives 0.

    Raises:
        ValueError: If a number is out of range or not finite.
    """
    _check_positive(sensitivity=sensitivity, sigma=sigma)
    _check_count(0, n_releases=n_releases)
    return math.sqrt(n_releases) * sensitivity / sigma


def joint_sensitivity(sensitivity: float, n_parties: int) -> float:
    """Returns the sensitivity of n_parties vectors of one record together, by Pythagoras.

    Each party's vector moves by at most ``sensitivity``, the concatenation by sqrt(n_parties)
    times that: 2 C sqrt(K) for K parties that each clip at C (replace-one).

    Raises:
        ValueError: If a number is out of range.
    """
    _check_positive(sensitivity=sensitivity)
    _check_count(1, n_parties=n_parties)
    return sensitivity * math.sqrt(n_parties)


def clip_share(clip: float, n_parties: int) -> float:
    """Returns clip / sqrt(n_parties): the clip norm of each that keeps one party's budget for all.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_positive(clip=clip)
    _check_count(1, n_parties=n_parties)
    return clip / math.sqrt(n_parties)


def delta(epsilon: float, mu: float) -> float:
    """Returns the smallest delta such that mu-GDP implies (epsilon, delta)-DP.

    Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2), Dong et al., corollary
    2.13. Computed without exp(epsilon), from Mills' ratio, so it neither overflows nor cancels.

    Args:
        epsilon: At least 0.
        mu: At least 0; 0 means nothing was released.

    Raises:
        ValueError: If a number is negative or not finite.
    """
    _check_not_negative(epsilon=epsilon, mu=mu)
    return _delta(epsilon, mu)


def epsilon(mu: float, delta: float) -> float:
    """Returns the smallest epsilon >= 0 such that mu-GDP implies (epsilon, delta)-DP.

    By bisection, to 1e-12 relative, rounded up: the epsilon returned holds.

    Args:
        mu: At least 0.
        delta: In (0, 1).

    Raises:
        ValueError: If a number is out of range.
    """
    _check_not_negative(mu=mu)
    _check_delta(delta)
    if _delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _delta(middle, mu) <= delta:
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=1024)
def sigma_for(epsilon: float, delta: float, sensitivity: float, n_releases: int = 1) -> float:
    """Returns the smallest sigma for which n_releases together are (epsilon, delta)-DP.

    By bisection over mu, to 1e-12 relative, rounded up: the sigma returned suffices.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).
        sensitivity: Delta > 0 of one release.
        n_releases: Releases of one record over the whole run, inference included; at least 1.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_positive(epsilon=epsilon, sensitivity=sensitivity)
    _check_delta(delta)
    _check_count(1, n_releases=n_releases)
    low = high = 1.0
    while _delta(epsilon, low) > delta:
        low /= 2
    while _delta(epsilon, high) <= delta:
        high *= 2
    while high - low > 1e-12 * low:
        middle = (low + high) / 2
        if _delta(epsilon, middle) <= delta:
            low = middle
        else:
            high = middle
    return math.sqrt(n_releases) * sensitivity / low


def _delta(epsilon: float, mu: float) -> float:
    """:func:`delta` unchecked. With a - b = mu and phi(a) = exp(epsilon) phi(b)."""
    if mu == 0:
        return 0.0
    a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    if a > 0:
        return max(0.0, float(ndtr(a)) - density * _mills(-b))
    return max(0.0, density * (_mills(-a) - _mills(-b)))


def _mills(t: float) -> float:
    """(1 - Phi(t)) / phi(t) for t >= 0: falls from sqrt(pi / 2), like 1 / t in the end."""
    return _HALF_PI_ROOT * float(erfcx(t / _ROOT_TWO))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} needs to be finite and above 0, got {value}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} needs to be finite and at least 0, got {value}")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta needs to lie in (0, 1), got {delta}")


def _check_count(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} needs to be at least {least}, got {value}")
