"""Norms of client updates and distances between them, summed in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.blocks import Scratch, inner_products, sum_by_columns
from fedface.aggregation.on_device import chosen_device, gram_on, products_on

LEAST_LENGTH = 1e-30
"""What counts as the length of a row that has none."""

CANCELLED = 1e-3
"""The least share of a squared length that may be left when rows are centred after the sums."""


def gram(
    rows: Tensor,
    origin: int | None = None,
    block: int | None = None,
    chosen: Tensor | None = None,
    exact: bool = True,
) -> Tensor:
    """Returns the inner products between the rows.

    Args:
        rows: ``(n, dim)``, or more rows than the ``chosen`` ones.
        origin: The row that is subtracted from all first, or None for none.
        block: Columns per pass, see :func:`fedface.aggregation.blocks.slices`.
        chosen: ``(n,)`` int64, which rows count; None for all.
        exact: In float64. False takes each block's sums in float32 and adds only those up in
            float64, in half the time: six digits of what the rows' lengths allow, for rows whose
            squares neither overflow nor vanish.

    Returns:
        ``(n, n)`` float64, symmetric.
    """
    if (device := chosen_device()) is not None:
        return gram_on(device, rows, origin, chosen, exact)
    values, scratch = rows.numpy(), Scratch()
    indices = list(range(len(values))) if chosen is None else chosen.tolist()
    n, dim = len(indices), values.shape[1]
    kind, everyone = np.float64 if exact else np.float32, indices == list(range(len(values)))

    def products(columns: slice) -> NDArray[Any]:
        block = scratch.array("block", values[:n, columns].shape, kind)
        if everyone:
            np.copyto(block, values[:, columns])
        else:
            for row, i in zip(block, indices, strict=True):
                np.copyto(row, values[i, columns])
        if origin is not None:
            block -= values[indices[origin], columns]
        return inner_products(block)

    return sum_by_columns(products, (n, dim), (n, n), block)


def cosines(products: Tensor) -> Tensor:
    """Returns the cosines between rows; zero where one has no length.

    Args:
        products: ``(n, n)`` float64, the inner products between the rows.

    Returns:
        ``(n, n)`` float64, symmetric.
    """
    norms = products.diagonal().sqrt().clamp_min(LEAST_LENGTH)
    return products / norms.outer(norms)


def centred_gram(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns the inner products between the updates about the one of (lower) median length.

    (Not about the mean: one enormous row would move it, and the differences among all others
    would drown. No minority can make the median length enormous.)

    Follows from the plain inner products, which cost one pass and give the lengths, too. Where
    that would cancel more than three digits of the sixteen, because updates are nearly equal to
    the central one, a second pass subtracts it first.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(n_clients, n_clients)`` float64, symmetric; the central update's row is zero.
    """
    products = gram(updates, block=block)
    lengths = products.diagonal()
    centre = int(lengths.argsort(stable=True)[(len(updates) - 1) // 2])
    cross = products[centre]
    centred = products - (cross[:, None] + cross[None, :]) + cross[centre]
    left = centred.diagonal() >= CANCELLED * lengths.clamp_min(float(lengths[centre]))
    left[centre] = True
    centred[centre] = centred[:, centre] = 0
    return centred if bool(left.all()) else gram(updates, centre, block)


def pairwise_squared_distances(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns the squared Euclidean distances between the rows of ``updates``.

    Uses ||x - y||^2 = ||x||^2 + ||y||^2 - 2 <x, y>, which cancels badly when rows are nearly
    parallel, as the updates of one cohort are: so lengths and products are taken about one of
    them (:func:`centred_gram`), and sums are taken in float64.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(n_clients, n_clients)`` float64, symmetric, never negative, zero on the diagonal.
    """
    products = centred_gram(updates, block)
    norms = products.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * products).clamp_min(0).fill_diagonal_(0)


def update_norms(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns the Euclidean norm of each row of ``updates``.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(n_clients,)`` float64; finite for any finite float32 row.
    """
    return products_with(updates, None, block).sqrt()


def products_with(updates: Tensor, vector: Tensor | None, block: int | None = None) -> Tensor:
    """Returns the inner product of each row of ``updates`` with ``vector``, or with itself.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        vector: ``(dim,)``; None for the row itself.
        block: Columns per pass.

    Returns:
        ``(n_clients,)`` float64.
    """
    if (device := chosen_device()) is not None:
        return products_on(device, updates, vector)
    values, scratch = updates.numpy(), Scratch()
    other = None if vector is None else vector.numpy()

    def products(columns: slice) -> NDArray[np.float64]:
        exact = scratch.exact(values[:, columns])
        second = exact if other is None else other[columns].astype(np.float64)
        return np.asarray(np.vecdot(exact, second))

    return sum_by_columns(products, values.shape, (len(values),), block)
