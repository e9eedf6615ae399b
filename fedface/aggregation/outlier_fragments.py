"""Which fragments of one layer are outliers of the pooled fragments of all clients.

Per-position Mahalanobis distances over n clients cannot work: with the sample's own mean and
covariance the largest possible squared distance is (n - 1)^2 / n, below the chi-square threshold
for the usual cohort whatever the attack (and equal for all clients when n <= d). So positions are
made comparable (centred and scaled by median and MAD over clients) and pooled: n * F points.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from fedface.aggregation.robust_scatter import robust_scatter
from fedface.aggregation.univariate import MAD_TO_SIGMA, coordinate_median

POINTS_PER_COMPONENT = 5
"""Points that a dimension of a robust scatter needs (Rousseeuw & Van Driessen: n > 5 p)."""

_LIMIT = 1e6
"""Standardised values are clipped here: no finite update may overflow float32."""


@dataclass(frozen=True)
class Detector:
    """How outlier fragments are found.

    Attributes:
        n_components: r, the principal components kept.
        quantile: q, of the chi-square distribution: the share of clean Gaussian fragments passed.
        support_fraction: h / n of the robust scatter.
    """

    n_components: int
    quantile: float
    support_fraction: float

    def flags(self, fragments: Tensor, rng: np.random.Generator) -> Tensor | None:
        """Returns which fragments are outliers: MD^2 > chi2_r(q).

        Args:
            fragments: ``(n_clients, n_fragments, fragment_dim)`` of one layer.
            rng: For the randomised projection.

        Returns:
            ``(n_clients, n_fragments)`` bool; None if there are too few fragments in all to
            estimate a scatter in even one dimension, so that the layer cannot be judged.
        """
        n_clients, n_fragments, fragment_dim = fragments.shape
        n_points = n_clients * n_fragments
        r = min(self.n_components, fragment_dim, n_points // POINTS_PER_COMPONENT)
        if r < 1:
            return None
        points = principal_components(standardise(fragments).reshape(n_points, -1), r, rng)
        distances = robust_scatter(points, self.support_fraction).squared_distances(points)
        return (distances > float(chi2.ppf(self.quantile, r))).reshape(n_clients, n_fragments)


def standardise(fragments: Tensor) -> Tensor:
    """Returns fragments centred by the clients' coordinate-wise median and scaled by their MAD.

    The scale is one number per position (1.4826 times the median absolute deviation over clients
    and coordinates), so a fragment keeps its shape and a client that is long in a position stays
    long. Where most deviations are exactly zero the mean absolute deviation takes the MAD's
    place. Values are clipped at 1e6 scales.

    Args:
        fragments: ``(n_clients, n_fragments, fragment_dim)``.

    Returns:
        The same shape, float32; zeros where all clients agree.
    """
    centred = fragments - coordinate_median(fragments)
    by_position = centred.abs().transpose(0, 1).reshape(fragments.shape[1], -1)
    scale = torch.from_numpy(MAD_TO_SIGMA * np.median(by_position.numpy(), axis=1))
    scale = torch.where(scale > 0, scale, by_position.double().mean(dim=1).float())
    scale = torch.where(scale > 0, scale, 1.0)
    return (centred / scale[:, None]).clamp(-_LIMIT, _LIMIT)


def principal_components(points: Tensor, n_components: int, rng: np.random.Generator) -> Tensor:
    """Returns the coordinates of ``points`` in their leading principal components.

    Randomised (Halko, Martinsson & Tropp, SIAM Review 2011), with the random projection on the
    side of the features whatever the shape, so that permuting points permutes the result.
    scikit-learn's ``PCA(svd_solver="randomized")`` runs the same routine but projects on the
    shorter side, and centres by the mean; here points come centred by the median, which
    outliers move less.

    Args:
        points: ``(n_points, d)``, centred.
        n_components: r <= d.
        rng: For the projection.

    Returns:
        ``(n_points, r)`` float32; zeros if all points are zero.
    """
    if not bool(points.any()):
        return torch.zeros(len(points), n_components)
    _, _, axes = randomized_svd(
        points.numpy(),
        n_components,
        n_iter=4,
        transpose=False,
        random_state=int(rng.integers(1 << 31)),
    )
    return points @ torch.from_numpy(axes).T
