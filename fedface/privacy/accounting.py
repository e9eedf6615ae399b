"""What Gaussian releases cost together: one (epsilon, delta) for a whole run, or for many runs.

A step of DP-SGD draws every unit (image, subject or site) with probability q on its own (Poisson
sampling) and adds N(0, (z C)^2) to a sum to which one unit gives at most C. Neighbours differ in
the presence of one unit. Three accountants, all upper bounds:

* ``rdp``: Renyi DP of the sampled Gaussian mechanism, Mironov, Talwar and Zhang 2019
  (https://arxiv.org/abs/1908.10530), converted by Balle et al. 2020 (theorem 21 of
  https://arxiv.org/abs/1905.09982);
* ``prv``: numerical composition of privacy random variables, Gopi, Lee and Wutschitz, NeurIPS 2021
  (https://arxiv.org/abs/2106.02848), its upper end; tighter;
* ``gdp``: exact, Dong, Roth and Su 2022, for steps in which every unit takes part (q = 1).

The first two are Opacus's, called with orders up to 512 (its own end at 63, which is loose for a
small epsilon). Where every q is 1 all three give the exact value. Where PRV's grid would be too
large or refuses, and wherever RDP happens to be tighter, RDP's bound is the ``prv`` one.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

from fedface.privacy import gaussian
from fedface.privacy.dp_sgd import prv_epsilon, rdp_epsilon

Accountant = Literal["rdp", "prv", "gdp"]
"""How epsilon is computed."""

MAX_PRV = 50.0
"""Above this epsilon, which protects nobody, PRV's grid is not worth its memory."""


class Steps(NamedTuple):
    """Equal steps of the sampled Gaussian mechanism.

    Attributes:
        noise_multiplier: z, the noise's standard deviation in units of the clip norm; 0 is no
            privacy.
        sample_rate: q, the probability that a unit takes part in a step; in (0, 1].
        n_steps: How many.
    """

    noise_multiplier: float
    sample_rate: float
    n_steps: int


def epsilon(history: Iterable[Steps], delta: float, accountant: Accountant = "prv") -> float:
    """Returns an epsilon such that all of ``history`` together is (epsilon, delta)-DP.

    Args:
        history: Steps in any order; none cost nothing.
        delta: In (0, 1).
        accountant: See the module.

    Returns:
        At least 0; infinity where a step has no noise.

    Raises:
        ValueError: If a number is out of range, or ``gdp`` is asked for sampled steps.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta needs to lie in (0, 1), got {delta}")
    return _epsilon(_merged(history), delta, accountant)


@lru_cache(maxsize=128)
def noise_for(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    n_steps: int,
    accountant: Accountant = "prv",
) -> float:
    """Returns the smallest noise multiplier for which ``n_steps`` cost at most ``target_epsilon``.

    Rounded up to four significant digits: what is returned suffices.

    Raises:
        ValueError: As :func:`epsilon`, or if ``target_epsilon`` is not above 0.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ValueError(f"target_epsilon needs to be finite and above 0, got {target_epsilon}")

    def suffices(noise: float, by: Accountant) -> bool:
        return epsilon([Steps(noise, sample_rate, n_steps)], delta, by) <= target_epsilon

    first: Accountant = "rdp" if accountant == "prv" else accountant
    low = high = 1.0
    while not suffices(high, first):
        low, high = high, 2 * high
    while low == high or suffices(low, first):
        low, high = low / 2, low
    high = _bisected(low, high, lambda noise: suffices(noise, first))
    if accountant != first:
        low = 0.95 * high
        while suffices(low, accountant):
            low, high = 0.95 * low, low
        high = _bisected(low, high, lambda noise: suffices(noise, accountant))
    return high


def _bisected(low: float, high: float, suffices: Callable[[float], bool]) -> float:
    """The least sufficient number in (low, high], on a grid of four significant digits."""
    while high - low > 5e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    unit = 10.0 ** (math.floor(math.log10(high)) - 3)
    return round(math.ceil(high / unit) * unit, 12)


def _merged(history: Iterable[Steps]) -> tuple[Steps, ...]:
    """Equal mechanisms counted together, in a fixed order."""
    counts: dict[tuple[float, float], int] = {}
    for noise, rate, n_steps in history:
        if not (math.isfinite(noise) and noise >= 0 and 0 < rate <= 1 and n_steps >= 0):
            raise ValueError(
                "steps need noise_multiplier >= 0, sample_rate in (0, 1] and n_steps >= 0, "
                f"got {noise}, {rate} and {n_steps}"
            )
        if n_steps:
            counts[noise, rate] = counts.get((noise, rate), 0) + n_steps
    return tuple(Steps(noise, rate, n) for (noise, rate), n in sorted(counts.items()))


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[Steps, ...], delta: float, accountant: Accountant) -> float:
    if not history:
        return 0.0
    if any(steps.noise_multiplier == 0 for steps in history):
        return math.inf
    if all(steps.sample_rate == 1 for steps in history):
        mu = math.sqrt(sum(n / noise**2 for noise, _, n in history))
        return gaussian.epsilon(mu, delta)
    if accountant == "gdp":
        rates = sorted({steps.sample_rate for steps in history})
        raise ValueError(f"the accountant gdp needs sample_rate 1, got {rates}; use prv or rdp")
    bound = max(0.0, rdp_epsilon(history, delta))
    if accountant == "rdp" or bound > MAX_PRV:
        return bound
    return max(0.0, min(bound, prv_epsilon(history, delta, bound)))
