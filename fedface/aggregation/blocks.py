"""A cohort's updates, worked on block by block of columns, on as many threads as torch may use.

A block is small enough for a processor's cache, so whatever is done to it (double precision,
sorting) costs one pass over the memory of the updates and no copy of them; and large enough for
numpy's calls on it to take much longer than a thread takes to get the interpreter back after each.
Each block is worked on by one thread, and blocks are put together in order: the result has the same
bits on any number of threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor

CELLS = 1 << 20
"""Numbers in a block: 4 MiB in float32. (A quarter of it is as fast on one thread, not on two.)"""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yields what ``work`` makes of each item, in the order of the items.

    Args:
        work: Called once for each item, by any thread. It uses numpy, which lets other threads
            run meanwhile and keeps to the thread that it is called on (linear algebra, too: it is
            held to one thread while this function runs); torch would start threads of its own.
        items: Begun in this order by ``torch.get_num_threads()`` threads.
    """
    n_threads = min(torch.get_num_threads(), len(items))
    with _linear_algebra().limit(limits=1, user_api="blas"):
        if n_threads < 2:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(n_threads) as threads:
            yield from threads.map(work, items)


def slices(n_rows: int, n_columns: int, block: int | None = None) -> list[slice]:
    """Returns the blocks of a matrix, as slices of its columns.

    Args:
        n_rows: Its rows.
        n_columns: Its columns.
        block: Columns per block; None makes blocks of ``CELLS`` numbers.
    """
    step = max(1, CELLS // max(n_rows, 1)) if block is None else block
    return [slice(start, min(start + step, n_columns)) for start in range(0, n_columns, step)]


def by_columns(
    work: Callable[[slice], None], shape: tuple[int, int], block: int | None = None
) -> None:
    """Calls ``work`` for each block of columns of an ``(n_rows, n_columns)`` matrix.

    Args:
        work: As for :func:`in_threads`; it writes where no other call does.
        shape: The matrix's.
        block: As for :func:`slices`.
    """
    for _ in in_threads(work, slices(*shape, block)):
        pass


def sum_by_columns(
    work: Callable[[slice], NDArray[Any]],
    shape: tuple[int, int],
    total_shape: tuple[int, ...],
    block: int | None = None,
) -> Tensor:
    """Returns the sum of what ``work`` makes of each block of columns, added in their order.

    Args:
        work: As for :func:`in_threads`; returns an array of ``total_shape``.
        shape: The matrix's.
        total_shape: The sum's.
        block: As for :func:`slices`.

    Returns:
        ``total_shape`` float64.
    """
    total = np.zeros(total_shape)
    for part in in_threads(work, slices(*shape, block)):
        total += part
    return torch.from_numpy(total)


def inner_products(rows: NDArray[Any]) -> NDArray[Any]:
    """Returns ``(n, n)``, the inner products of ``(n, k)`` rows, other threads running meanwhile.

    (``rows @ rows.T`` has the same bits and keeps the interpreter locked, as of numpy 2.4.)
    """
    return np.asarray(np.dot(rows, rows.T))


class Scratch(threading.local):
    """Arrays that a thread keeps from block to block: fresh memory costs as much as the work."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type = np.float64) -> NDArray[Any]:
        """Returns the calling thread's array of that name and shape; it holds anything."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            kept = self._kept[name] = np.empty(shape, dtype)
        return kept

    def exact(self, piece: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the calling thread's float64 copy of ``piece``, until it asks for the next."""
        copy = self.array("exact", piece.shape)
        np.copyto(copy, piece)
        return copy


def remembered(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Returns a float32 array that holds anything, for what is kept from one round to the next.

    Its memory is that of an earlier one of the same shape which nobody holds any more, if there is
    one: each round drops an old state for a new one, and fresh memory costs more than filling it
    (on a virtual machine that hands freed memory back to its host, ten times as much).
    """
    try:
        memory = _FREE.pop()
    except IndexError:
        memory = np.empty(shape, np.float32)
    return np.asarray(_Lent(memory if memory.shape == shape else np.empty(shape, np.float32)))


class _Lent:
    """What an array's memory belongs to while the array, or any view of it, is alive."""

    def __init__(self, memory: NDArray[np.float32]) -> None:
        self.__array_interface__ = memory.__array_interface__
        finalize(self, _FREE.append, memory).atexit = False


_FREE: deque[NDArray[np.float32]] = deque(maxlen=1)
"""The memory that was given back last."""


@cache
def _linear_algebra() -> ThreadpoolController:
    """What sets the threads of numpy's linear algebra; looking for the libraries takes a while."""
    return ThreadpoolController()
