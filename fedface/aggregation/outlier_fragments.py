"""Which fragments of one layer are outliers of the pooled fragments of all clients.

Per-position Mahalanobis distances over n clients cannot work: with the sample's own mean and
covariance the largest possible squared distance is (n - 1)^2 / n, below the chi-square threshold
for the usual cohort whatever the attack (and equal for all clients when n <= d). So positions are
made comparable (centred and scaled by median and MAD over clients) and pooled: n * F points.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.on_device import chosen_device
from fedface.aggregation.points import Floats, Points, Take, taken_from
from fedface.aggregation.points_on_device import PointsOnDevice
from fedface.aggregation.robust_scatter import chi_square_quantile, robust_scatter

POINTS_PER_COMPONENT = 5
"""Points that a dimension of a robust scatter needs (Rousseeuw & Van Driessen: n > 5 p)."""


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
        """Returns which fragments are outliers: :meth:`judge` for fragments that are at hand.

        Args:
            fragments: ``(n_clients, n_fragments, fragment_dim)`` float32 of one layer.
            rng: For the randomised projection.
        """
        n_clients, n_fragments, fragment_dim = fragments.shape
        return self.judge(taken_from(fragments), (n_clients, n_fragments, fragment_dim), rng)

    def judge(
        self,
        take: Take,
        shape: tuple[int, int, int],
        rng: np.random.Generator,
        lengths: NDArray[np.float64] | None = None,
        largest: float = inf,
    ) -> Tensor | None:
        """Returns which fragments are outliers: MD^2 > chi2_r(q).

        Args:
            take: Gives the fragments of one layer.
            shape: ``(n_clients, n_fragments, fragment_dim)``.
            rng: For the randomised projection.
            lengths: ``(n_clients,)`` what each client's fragments are divided by; None for one.
            largest: No number of the layer is larger in magnitude after that.

        Returns:
            ``(n_clients, n_fragments)`` bool; None if there are too few fragments in all to
            estimate a scatter in even one dimension, so that the layer cannot be judged.
        """
        n_clients, n_fragments, fragment_dim = shape
        n_points = n_clients * n_fragments
        r = min(self.n_components, fragment_dim, n_points // POINTS_PER_COMPONENT)
        if r < 1:
            return None
        points = torch.from_numpy(self._components(take, shape, r, rng, lengths, largest))
        points = points.flatten(0, 1)
        distances = robust_scatter(points, self.support_fraction).squared_distances(points)
        return (distances > chi_square_quantile(self.quantile, r)).reshape(n_clients, n_fragments)

    def _components(
        self,
        take: Take,
        shape: tuple[int, int, int],
        r: int,
        rng: np.random.Generator,
        lengths: NDArray[np.float64] | None,
        largest: float,
    ) -> Floats:
        """Principal components of the points, where large sums are worked on."""
        if (device := chosen_device()) is None:
            return Points(take, shape, lengths, largest).components(r, rng)
        return PointsOnDevice(device, take, shape, lengths, largest).components(r, rng)
