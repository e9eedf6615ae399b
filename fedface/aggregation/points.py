"""One layer's fragments of all clients, made comparable: points in as many dimensions as a filter.

A layer's points are as large as its part of all updates, so they are made a few positions at a
time, and made again for each of the three passes over them; only ``HELD`` numbers are kept.
"""

from collections.abc import Callable
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lu, qr, svd
from torch import Tensor

from fedface.aggregation.blocks import Scratch, slices
from fedface.aggregation.order_statistics import ranked
from fedface.aggregation.univariate import MAD_TO_SIGMA

HELD = 1 << 20
"""Numbers of a layer's points that the power iterations run on: 4 MiB. In a larger layer they see
a random choice of its positions, and only the last iteration all."""

MEASURED = 1 << 14
"""Deviations that a position's scale is the median of. Where there are more, every second
(third, ...) coordinate is taken: a scale of a Gaussian is then about one percent off."""

LIMIT = 1e6
"""Standardised values are clipped here: no finite update may overflow float32."""

_OVERSAMPLING, ITERATIONS = 10, 4
"""Columns of the projection beyond r, and power iterations."""

Floats = NDArray[np.float32]

Take = Callable[[slice], Floats]
"""The fragments of some positions of a layer: ``(n_clients, n_positions, fragment_dim)``. They may
be a view; nobody writes to them."""


class Points:
    """One layer's fragments of all clients, standardised, as points in d dimensions.

    The scale is one number per position (1.4826 times the median absolute deviation over clients
    and coordinates), so a fragment keeps its shape and a client that is long in a position stays
    long. Where most deviations are exactly zero the mean absolute deviation takes the MAD's
    place. Values are clipped at 1e6 scales.
    """

    def __init__(
        self,
        take: Take,
        shape: tuple[int, int, int],
        lengths: NDArray[np.float64] | None = None,
        largest: float = inf,
    ) -> None:
        """Measures the medians ``(F, d)`` and scales ``(F,)``, in a first pass."""
        n_clients, n_fragments, fragment_dim = shape
        self.take, self.shape, self.scratch = take, shape, Scratch()
        inverse = np.ones(n_clients) if lengths is None else 1 / lengths
        self.factors = inverse.astype(np.float32)[:, None, None]
        self.medians = np.empty((n_fragments, fragment_dim), np.float32)
        self.scales = np.empty(n_fragments, np.float32)
        # Half of a block: there are three arrays of it for each thread.
        self.blocks = slices(2 * n_clients * fragment_dim, n_fragments)
        for positions in self.blocks:
            self._measure(positions)
        # No number is farther from a median than twice the largest.
        self.clipped = not 2 * largest <= LIMIT * float(self.scales.min())

    def at(self, positions: slice) -> Floats:
        """Returns the points of some positions ``(n, n_positions, d)``, until the next call."""
        points = self._of_length_one(positions)
        points -= self.medians[positions]
        with np.errstate(over="ignore"):
            points /= self.scales[positions, None]
        return np.clip(points, -LIMIT, LIMIT, out=points) if self.clipped else points

    def _of_length_one(self, positions: slice) -> Floats:
        """The fragments of some positions over their clients' lengths, until the next call."""
        fragments = self.take(positions)
        points = self.scratch.array("points", fragments.shape, np.float32)
        np.multiply(fragments, self.factors, out=points)
        return points

    def components(self, n_components: int, rng: np.random.Generator) -> Floats:
        """Returns the points' coordinates in their leading principal components.

        Args:
            n_components: r <= d.
            rng: For the projection, and the choice of positions in a layer beyond ``HELD``.

        Returns:
            ``(n_clients, n_fragments, r)``; zeros if all points are zero.
        """
        n_clients, n_fragments, fragment_dim = self.shape
        start = projection(fragment_dim, n_components, rng)
        chosen = held_positions(self.shape, rng)
        held = np.empty((n_clients, len(chosen), fragment_dim), np.float32)
        for i, position in enumerate(chosen):
            held[:, i] = self.at(slice(position, position + 1))[:, 0]
        basis = _power_iterations(held.reshape(-1, fragment_dim), start)
        del held
        span, _ = qr(
            self._times(basis).reshape(n_clients * n_fragments, -1),
            mode="economic",
            check_finite=False,
            overwrite_a=True,
        )
        return self._times(_leading(self._transposed_times(span), n_components))

    def _measure(self, positions: slice) -> None:
        fragments = self._of_length_one(positions)
        n, n_positions, d = fragments.shape
        rows = fragments.reshape(n, -1)
        middle = ranked(rows, (n - 1) // 2, n // 2, self.scratch)
        self.medians[positions] = _halfway(middle[0], middle[-1]).reshape(n_positions, d)
        every = -(-n * d // MEASURED)
        sparse, centres = fragments[:, :, ::every], self.medians[positions, ::every]
        shape = (n_positions, n, sparse.shape[2])
        deviations = self.scratch.array("deviations", shape, np.float32)
        with np.errstate(over="ignore"):
            np.subtract(sparse.transpose(1, 0, 2), centres[:, None], out=deviations)
        by_position = np.abs(deviations, out=deviations).reshape(n_positions, -1)
        scales = MAD_TO_SIGMA * _row_medians(by_position)
        for i in np.flatnonzero(scales == 0):
            # Of every coordinate: nobody hides in those that are not measured.
            apart = np.abs(fragments[:, i] - self.medians[positions][i])
            scales[i] = apart.mean(dtype=np.float64) or 1
        self.scales[positions] = scales

    def _times(self, matrix: Floats) -> Floats:
        """The points times ``(d, k)``: ``(n, F, k)``."""
        n, n_fragments, d = self.shape
        result = np.empty((n, n_fragments, matrix.shape[1]), np.float32)
        for positions in self.blocks:
            points = self.at(positions)
            result[:, positions] = (points.reshape(-1, d) @ matrix).reshape(*points.shape[:2], -1)
        return result

    def _transposed_times(self, matrix: Floats) -> Floats:
        """The points' transpose times ``(n F, k)``: ``(d, k)``."""
        n, n_fragments, d = self.shape
        by_client = matrix.reshape(n, n_fragments, -1)
        total = np.zeros((d, matrix.shape[1]), np.float32)
        for positions in self.blocks:
            rows = by_client[:, positions].reshape(-1, matrix.shape[1])
            total += self.at(positions).reshape(-1, d).T @ rows
        return total


def standardise(fragments: Tensor) -> Tensor:
    """Returns fragments centred by the clients' coordinate-wise median and scaled by their MAD.

    Args:
        fragments: ``(n_clients, n_fragments, fragment_dim)`` float32.

    Returns:
        The same shape, float32, as :class:`Points` says; zeros where all clients agree.
    """
    n_clients, n_fragments, fragment_dim = fragments.shape
    points = Points(taken_from(fragments), (n_clients, n_fragments, fragment_dim))
    return torch.from_numpy(points.at(slice(None)))


def principal_components(points: Tensor, n_components: int, rng: np.random.Generator) -> Tensor:
    """Returns the coordinates of ``points`` in their leading principal components.

    Randomised (Halko, Martinsson & Tropp, SIAM Review 2011), with the random projection on the
    side of the features whatever the shape, so that permuting points permutes the result.
    scikit-learn's ``PCA(svd_solver="randomized")`` runs the same routine but projects on the
    shorter side, and centres by the mean; here points come centred by the median, which
    outliers move less.

    Args:
        points: ``(n_points, d)`` float32, centred.
        n_components: r <= d.
        rng: For the projection.

    Returns:
        ``(n_points, r)`` float32; zeros if all points are zero.
    """
    values = points.numpy()
    basis = _power_iterations(values, projection(values.shape[1], n_components, rng))
    span, _ = qr(values @ basis, mode="economic", check_finite=False)
    return torch.from_numpy(values @ _leading(values.T @ span, n_components))


def taken_from(fragments: Tensor) -> Take:
    """Returns what gives the fragments of some positions, of fragments that are at hand."""
    values = fragments.numpy()
    return lambda positions: values[:, positions]


def held_positions(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns the positions that the power iterations run on: all, or ``HELD`` numbers' worth."""
    n_clients, n_fragments, fragment_dim = shape
    n_held = max(1, HELD // (n_clients * fragment_dim))
    if n_held >= n_fragments:
        return np.arange(n_fragments)
    return np.sort(rng.permutation(n_fragments)[:n_held])


def projection(fragment_dim: int, n_components: int, rng: np.random.Generator) -> Floats:
    """Returns the Gaussian matrix ``(d, r + 10)`` that scikit-learn's routine would draw."""
    drawn = np.random.RandomState(int(rng.integers(1 << 31)))
    matrix = drawn.normal(size=(fragment_dim, n_components + _OVERSAMPLING))
    return matrix.astype(np.float32)


def _power_iterations(points: Floats, basis: Floats) -> Floats:
    """The basis ``(d, k)`` turned towards the directions in which ``points`` extend most."""
    for _ in range(ITERATIONS):
        span, _ = lu(points @ basis, permute_l=True, check_finite=False)
        basis, _ = lu(points.T @ span, permute_l=True, check_finite=False)
    return basis


def _leading(projected: Floats, n_components: int) -> Floats:
    """The leading left singular vectors ``(d, r)`` of the points seen from an orthonormal span."""
    left, _, _ = svd(projected, full_matrices=False, check_finite=False)
    return np.ascontiguousarray(left[:, :n_components])


def _halfway(low: Floats, high: Floats) -> Floats:
    return np.asarray(low + (high - low) / 2, np.float32)


def _row_medians(rows: Floats) -> Floats:
    """The median of each row; the rows are reordered. (One pivot is ten times faster than two.)"""
    half = rows.shape[1] // 2
    rows.partition(half, axis=1)
    high = rows[:, half]
    low = high if rows.shape[1] % 2 else rows[:, :half].max(axis=1)
    return np.asarray((low + high) / 2, np.float32)
