"""Robust location and scatter by concentration steps: a fast stand-in for MinCovDet.

The minimum covariance determinant (Rousseeuw & Van Driessen, "A fast algorithm for the minimum
covariance determinant estimator", Technometrics 1999) seeks the h points whose covariance has
the least determinant. FastMCD starts its concentration steps (C-steps: take the h points nearest
by the present location and scatter, re-estimate, repeat; the determinant never grows) from 500
random subsets. Here they start once, from the coordinate-wise median and MAD, as deterministic
variants do (Hubert, Rousseeuw & Verdonck, JCGS 2012, who use six such starts): no randomness,
one to two orders of magnitude faster than ``sklearn.covariance.MinCovDet``, and in exchange only
a local minimum, and no affine equivariance. Points should come with roughly uncorrelated
coordinates (principal components do). Instead of the Gaussian consistency factor and FastMCD's
reweighting, the scatter is rescaled so that the median squared distance is that of a chi-square:
under contamination this errs towards short distances, i.e. towards not accusing.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaincinv
from torch import Tensor

from fedface.aggregation.univariate import MAD_TO_SIGMA, coordinate_median

_FLAT = 1e-10
"""Variances below this share of the largest are numerically no variance."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RobustScatter:
    """Where the bulk of the points lies.

    Attributes:
        location: ``(r,)`` float64.
        scatter: ``(r, r)`` float64, the covariance of the bulk, consistent at a Gaussian.
    """

    location: Tensor
    scatter: Tensor

    def squared_distances(self, points: Tensor) -> Tensor:
        """Returns the ``(n,)`` squared Mahalanobis distances of ``points`` ``(n, r)``: MD^2.

        Directions in which the bulk does not vary count as varying by 1e-10 of the largest
        variance, so a point off the bulk's subspace gets a huge but finite distance. All are
        zero if there is no scatter at all.
        """
        deviations = points.numpy().astype(np.float64) - self.location.numpy()
        return torch.from_numpy(_squared_distances(deviations, self.scatter.numpy()))


def robust_scatter(
    points: Tensor, support_fraction: float = 0.75, max_steps: int = 30
) -> RobustScatter:
    """Returns the location and scatter of the most concentrated share of ``points``.

    Args:
        points: ``(n, r)``.
        support_fraction: h / n. Up to a share 1 - h / n of arbitrary points can be resisted; the
            lower, the more robust and the less precise.
        max_steps: The most C-steps (they usually settle within ten).

    Raises:
        ValueError: If ``support_fraction`` is not in [0.5, 1] or there are fewer than r + 1
            points.
    """
    n, r = points.shape
    if not 0.5 <= support_fraction <= 1:
        raise ValueError(
            f"robust_scatter needs 0.5 <= support_fraction <= 1, got {support_fraction}"
        )
    if n < r + 1:
        raise ValueError(f"robust_scatter needs at least {r + 1} points in {r} dims, got {n}")
    exact = points.numpy().astype(np.float64)
    shift = coordinate_median(torch.from_numpy(exact)).numpy()
    centred = exact - shift
    h = max(ceil(support_fraction * n), (n + r + 1) // 2)
    location, scatter = np.zeros_like(shift), _initial_scatter(centred)
    support: NDArray[np.bool_] | None = None
    for _ in range(max_steps):
        distances = _squared_distances(centred - location, scatter)
        nearest = _smallest(distances, h)
        if support is not None and np.array_equal(nearest, support):
            break
        support = nearest
        location, scatter = _moments(centred, support)
    distances = _squared_distances(centred - location, scatter)
    typical = float(coordinate_median(torch.from_numpy(distances)))
    if typical > 0:
        scatter = scatter * (typical / chi_square_quantile(0.5, r))
    return RobustScatter(torch.from_numpy(shift + location), torch.from_numpy(scatter))


def chi_square_quantile(q: float, dim: int) -> float:
    """Returns the ``q`` quantile of chi-square with ``dim`` degrees of freedom.

    (The same number as ``scipy.stats.chi2.ppf``, whose import takes half a second.)
    """
    return 2 * float(gammaincinv(dim / 2, q))


def _smallest(values: Floats, n_chosen: int) -> NDArray[np.bool_]:
    """Which values are the smallest so many; of equal ones the first."""
    limit = np.partition(values, n_chosen - 1)[n_chosen - 1]
    chosen: NDArray[np.bool_] = values < limit
    chosen[np.flatnonzero(values == limit)[: n_chosen - np.count_nonzero(chosen)]] = True
    return chosen


def _initial_scatter(centred: Floats) -> Floats:
    """The diagonal of squared MADs; where a MAD is zero, of the mean squares."""
    mads = MAD_TO_SIGMA * coordinate_median(torch.from_numpy(np.abs(centred))).numpy()
    return np.diag(np.where(mads > 0, np.square(mads), np.square(centred).mean(axis=0)))


def _moments(centred: Floats, support: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and covariance of the support; a flat ball if the support is a single point."""
    chosen = centred[support]
    location = chosen.mean(axis=0)
    deviations = chosen - location
    scatter = deviations.T @ deviations / len(chosen)
    if float(scatter.diagonal().max()) == 0:
        everything = float(np.square(centred - location).mean())
        scatter = _FLAT * everything * np.eye(len(location))
    return location, scatter


def _squared_distances(deviations: Floats, scatter: Floats) -> Floats:
    """Mahalanobis by eigenvectors, with the smallest variances raised to the numerical floor."""
    variances, axes = np.linalg.eigh(scatter)
    largest = float(variances.max())
    if largest <= 0:
        return np.zeros(len(deviations))
    scores = np.square(deviations @ axes)
    return np.asarray(scores @ (1 / variances.clip(_FLAT * largest)))
