"""Robust statistics over clients: median, MAD score, Theil-Sen slope."""

import numpy as np
import torch
from torch import Tensor

from fedface.aggregation.blocks import Scratch, by_columns
from fedface.aggregation.order_statistics import ranked

MAD_TO_SIGMA = 1.4826
"""The standard deviation of a Gaussian over its median absolute deviation: 1 / 0.67449."""

MANY, WIDE = 128, 1024
"""More rows than this, or fewer columns, are selected from column by column."""


def coordinate_median(values: Tensor) -> Tensor:
    """Returns the median over the first axis, the mean of the middle two for an even count.

    (``torch.median`` takes the lower of the two, which is no longer odd under a change of sign.)

    Args:
        values: ``(n, ...)`` with n >= 1.

    Returns:
        ``(...)`` of the same type.
    """
    rows = values.numpy().reshape(len(values), -1)
    n, n_columns = rows.shape
    first, last = (n - 1) // 2, n // 2
    if n > MANY or n_columns < WIDE:
        halves = np.partition(rows, last, axis=0)
        low = halves[last] if first == last else halves[:last].max(axis=0)
        median = low + (halves[last] - low) / 2
    else:
        median, scratch = np.empty(n_columns, rows.dtype), Scratch()

        def fill(columns: slice) -> None:
            middle = ranked(rows[:, columns], first, last, scratch)
            median[columns] = middle[0] + (middle[-1] - middle[0]) / 2

        by_columns(fill, rows.shape)
    return torch.from_numpy(median.reshape(values.shape[1:]))


def shortest_half(values: Tensor) -> tuple[float, float]:
    """Returns centre and robust standard deviation of the shortest half (Rousseeuw & Leroy 1988).

    The shortest interval that holds n // 2 + 1 of the values: its middle, and 1.4826 times half its
    length (the standard deviation of a Gaussian). Median and MAD hold against half of the values,
    too, but drift with a large minority on one side; this does not move at all.

    Args:
        values: ``(n,)`` with n >= 1.
    """
    ordered, size = values.sort().values, len(values) // 2 + 1
    lengths = ordered[size - 1 :] - ordered[: len(values) - size + 1]
    start = int(lengths.argmin())
    centre = float(ordered[start] + ordered[start + size - 1]) / 2
    return centre, MAD_TO_SIGMA * float(lengths[start]) / 2


def robust_z(values: Tensor, floor: float) -> Tensor:
    """Returns how many robust standard deviations each value lies above the median.

    Args:
        values: ``(n,)`` float64, one per client.
        floor: The least standard deviation to believe in, in the unit of ``values``: with few
            clients the MAD is often tiny or zero by chance, and any honest client an outlier.

    Returns:
        ``(n,)``: (value - median) / max(1.4826 MAD, floor); finite.

    Raises:
        ValueError: If ``floor`` is not positive.
    """
    if not floor > 0:
        raise ValueError(f"robust_z needs floor > 0, got {floor}")
    deviations = values - coordinate_median(values)
    spread = MAD_TO_SIGMA * float(coordinate_median(deviations.abs()))
    return deviations / max(spread, floor)


def theil_sen_slope(x: Tensor, y: Tensor) -> float:
    """Returns the median slope over all pairs of points (Theil 1950, Sen 1968).

    Holds while fewer than 29 % of the points are arbitrary. Pairs of equal x have no slope and
    are left out; zero if no pair is left.

    Args:
        x: ``(n,)`` float64.
        y: ``(n,)`` float64.
    """
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    run, rise = x[second] - x[first], y[second] - y[first]
    usable = run != 0
    return float(coordinate_median(rise[usable] / run[usable])) if bool(usable.any()) else 0.0
