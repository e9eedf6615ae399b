"""ARIBA's standardised fragments on a GPU: what ``Points`` is on the CPU's threads."""

from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation import points
from fedface.aggregation.blocks import slices
from fedface.aggregation.on_device import BLOCK
from fedface.aggregation.univariate import MAD_TO_SIGMA


class PointsOnDevice:
    """One layer's fragments of all clients, standardised, as points in d dimensions.

    As :class:`fedface.aggregation.points.Points`, with the same choices of positions and
    coordinates; the power iterations run on all positions at once where the device holds them.
    """

    def __init__(
        self,
        device: torch.device,
        take: points.Take,
        shape: tuple[int, int, int],
        lengths: NDArray[np.float64] | None = None,
        largest: float = inf,
    ) -> None:
        """Measures the medians ``(F, d)`` and scales ``(F,)``, in a first pass."""
        n, n_fragments, d = shape
        self.device, self.take, self.shape = device, take, shape
        inverse = np.ones(n) if lengths is None else 1 / lengths
        self.factors = torch.from_numpy(inverse.astype(np.float32)).to(device)[:, None, None]
        self.medians = torch.empty(n_fragments, d, device=device)
        self.scales = torch.empty(n_fragments, device=device)
        self.blocks = slices(n * d, n_fragments, max(1, BLOCK // (n * d)))
        for positions in self.blocks:
            self._measure(positions)
        self.clipped = not 2 * largest <= points.LIMIT * float(self.scales.min())

    def at(self, positions: slice) -> Tensor:
        """Returns the points of some positions: ``(n, n_positions, d)``."""
        found = self._of_length_one(positions)
        found -= self.medians[positions]
        found /= self.scales[positions, None]
        return found.clamp_(-points.LIMIT, points.LIMIT) if self.clipped else found

    def components(self, n_components: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Returns the points' coordinates in their leading principal components.

        Args:
            n_components: r <= d.
            rng: As for ``Points.components``, and drawn from alike.

        Returns:
            ``(n_clients, n_fragments, r)``; zeros if all points are zero.
        """
        n, n_fragments, d = self.shape
        start = points.projection(d, n_components, rng)
        basis = torch.from_numpy(start).to(self.device)
        chosen = points.held_positions(self.shape, rng)
        held = torch.cat([self.at(slice(p, p + 1)) for p in chosen.tolist()], dim=1).reshape(-1, d)
        for _ in range(points.ITERATIONS):
            span = torch.linalg.qr(held @ basis).Q
            basis = torch.linalg.qr(held.T @ span).Q
        del held
        span = torch.linalg.qr(self._times(basis).reshape(n * n_fragments, -1)).Q
        left, _, _ = torch.linalg.svd(self._transposed_times(span), full_matrices=False)
        found: NDArray[np.float32] = self._times(left[:, :n_components]).cpu().numpy()
        return found

    def _of_length_one(self, positions: slice) -> Tensor:
        """The fragments of some positions over their clients' lengths."""
        fragments = torch.from_numpy(np.ascontiguousarray(self.take(positions)))
        return fragments.to(self.device) * self.factors

    def _measure(self, positions: slice) -> None:
        fragments = self._of_length_one(positions)
        n, _, d = fragments.shape
        ordered = fragments.sort(dim=0).values
        low, high = ordered[(n - 1) // 2], ordered[n // 2]
        medians = self.medians[positions] = low + (high - low) / 2
        every = -(-n * d // points.MEASURED)
        apart = (fragments - medians).abs().transpose(0, 1)
        ordered = apart[:, :, ::every].flatten(1).sort(dim=1).values
        k = ordered.shape[1]
        scales = MAD_TO_SIGMA * (ordered[:, (k - 1) // 2] + ordered[:, k // 2]) / 2
        means = apart.flatten(1).double().mean(dim=1).float()
        scales = torch.where(scales > 0, scales, means)
        self.scales[positions] = torch.where(scales > 0, scales, 1.0)

    def _times(self, matrix: Tensor) -> Tensor:
        """The points times ``(d, k)``: ``(n, F, k)``."""
        return torch.cat([self.at(positions) @ matrix for positions in self.blocks], dim=1)

    def _transposed_times(self, matrix: Tensor) -> Tensor:
        """The points' transpose times ``(n F, k)``: ``(d, k)``."""
        n, n_fragments, d = self.shape
        by_client = matrix.reshape(n, n_fragments, -1)
        total = torch.zeros(d, matrix.shape[1], device=self.device)
        for positions in self.blocks:
            rows = by_client[:, positions].reshape(-1, matrix.shape[1])
            total += self.at(positions).reshape(-1, d).T @ rows
        return total
