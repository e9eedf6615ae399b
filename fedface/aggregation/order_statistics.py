"""The values of some ranks at each coordinate, over the clients, by a network of comparators.

Sorting one column of twenty numbers after another cannot use a processor's vectors. A sorting
network can: its comparators are the same for all columns, so each one is a minimum and a maximum
of two whole rows. The network is Batcher's odd-even merge sort ("Sorting networks and their
applications", AFIPS 1968; Knuth, volume 3, 5.2.2, algorithm M); comparators, and halves of them,
that no wanted rank depends on are left out.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedface.aggregation.blocks import Scratch

Comparator = tuple[int, int, bool, bool]
"""Two rows, the first above the second; whether the minimum and whether the maximum is wanted."""


def ranked(
    columns: Sequence[NDArray[Any]] | NDArray[Any], first: int, last: int, scratch: Scratch
) -> list[NDArray[Any]]:
    """Returns the values of the ranks ``first`` to ``last``, ascending, at each column.

    Args:
        columns: n rows ``(n_columns,)`` without NaN; not modified.
        first: From 0.
        last: To n - 1, inclusive.
        scratch: Holds the result until its next use on the same thread.

    Returns:
        ``last - first + 1`` arrays ``(n_columns,)``.
    """
    n = len(columns)
    rows = scratch.array("ranked", (n + 1, len(columns[0])), columns[0].dtype.type)
    for row, column in zip(rows, columns, strict=False):
        np.copyto(row, column)
    wires, spare = list(rows[:n]), rows[n]
    for i, j, lower, upper in network(n, first, last):
        one, other = wires[i], wires[j]
        if lower and upper:
            np.minimum(one, other, out=spare)
            np.maximum(one, other, out=other)
            wires[i], spare = spare, one
        elif lower:
            np.minimum(one, other, out=one)
        else:
            np.maximum(one, other, out=other)
    return wires[first : last + 1]


def mean_of(rows: Sequence[NDArray[Any]], scratch: Scratch) -> NDArray[np.float64]:
    """Returns the mean of n >= 1 rows ``(n_columns,)``, accumulated in float64, in their order."""
    total, exact = scratch.array("total", rows[0].shape), scratch.array("exact", rows[0].shape)
    np.copyto(total, rows[0])
    for row in rows[1:]:
        np.copyto(exact, row)
        total += exact
    total /= len(rows)
    return total


def within(
    rows: Sequence[NDArray[Any]] | NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    scratch: Scratch,
) -> NDArray[np.int64]:
    """Returns how many values of each row lie from ``low`` to ``high``, both inclusive.

    Args:
        rows: n rows ``(n_columns,)``.
        low: ``(n_columns,)``, nowhere above ``high``.
        high: ``(n_columns,)``.
        scratch: For intermediate results.

    Returns:
        ``(n,)``.
    """
    found = scratch.array("found", low.shape, np.bool_)
    return np.array(
        [
            np.count_nonzero(np.greater_equal(row, low, out=found))
            - np.count_nonzero(np.greater(row, high, out=found))
            for row in rows
        ]
    )


@cache
def network(n: int, first: int, last: int) -> tuple[Comparator, ...]:
    """Returns the comparators that bring the ranks ``first`` to ``last`` of n values in order.

    Row i ends as rank i for the wanted ranks; the others hold anything.
    """
    wanted = set(range(first, last + 1))
    kept: list[Comparator] = []
    for i, j in reversed(_odd_even_merge_sort(n)):
        if i in wanted or j in wanted:
            kept.append((i, j, i in wanted, j in wanted))
            wanted |= {i, j}
    return tuple(reversed(kept))


def _odd_even_merge_sort(n: int) -> list[tuple[int, int]]:
    """Batcher's comparators for any n."""
    pairs: list[tuple[int, int]] = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for start in range(k % p, n - k, 2 * k):
                rows = range(start, min(start + k, n - k))
                pairs += [(i, i + k) for i in rows if i // (2 * p) == (i + k) // (2 * p)]
            k //= 2
        p *= 2
    return pairs
