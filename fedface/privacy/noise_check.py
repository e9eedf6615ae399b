"""Tests of the noise itself: is it Gaussian, of the claimed scale, and fresh?

The chi-square test of a variance and the Kolmogorov-Smirnov test of a distribution, both exact for
independent normal numbers. They look inside a mechanism; an audit by distinguishing
(:mod:`fedface.privacy.audit`) looks at it from outside.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, kstest
from torch import Tensor


@dataclass(frozen=True)
class NoiseCheck:
    """Whether residuals are N(0, sigma^2), number by number.

    Attributes:
        sigma: The scale that was claimed.
        estimate: Root mean square of the residuals.
        low: Lower end of the exact interval of the true scale.
        high: Upper end.
        scale_p_value: Two-sided, of the claimed scale (chi-square).
        shape_p_value: Of the whole distribution at the claimed scale (Kolmogorov-Smirnov).
    """

    sigma: float
    estimate: float
    low: float
    high: float
    scale_p_value: float
    shape_p_value: float


def check_noise(residuals: Tensor, sigma: float, confidence: float = 0.95) -> NoiseCheck:
    """Returns whether residuals are independent N(0, sigma^2), by exact tests.

    Of a release z of a known u the residual is z - u. Of two releases of the same u it is (z_1 -
    z_2) / sqrt(2), which needs no u and is zero where noise is used twice.

    Args:
        residuals: At least two numbers, of any shape.
        sigma: The scale that is claimed, above 0.
        confidence: Of the interval, in (0, 1).

    Raises:
        ValueError: If there are too few, one is not finite, or ``sigma`` is not above 0.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence needs to lie in (0, 1), got {confidence}")
    values = residuals.detach().cpu().double().flatten().numpy()
    if len(values) < 2 or not np.isfinite(values).all() or not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            "check_noise needs two or more finite residuals and sigma > 0, got "
            f"{len(values)} of which {int((~np.isfinite(values)).sum())} are not finite, {sigma=}"
        )
    total, n, tail = float((values**2).sum()), len(values), (1 - confidence) / 2
    scaled = total / sigma**2
    return NoiseCheck(
        sigma=sigma,
        estimate=math.sqrt(total / n),
        low=math.sqrt(total / float(chi2.isf(tail, n))),
        high=math.sqrt(total / float(chi2.ppf(tail, n))),
        scale_p_value=min(1.0, 2 * float(min(chi2.cdf(scaled, n), chi2.sf(scaled, n)))),
        shape_p_value=float(kstest(values / sigma, "norm").pvalue),
    )
