"""A cohort's updates, worked on block by block of columns, on as many threads as torch may use.

A block is small enough for a core's cache, so whatever is done to it (double precision, sorting)
costs one pass over the memory of the updates and no copy of them. Each block is worked on by one
thread, and blocks are put together in order: the result has the same bits on any number of threads.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

CELLS = 1 << 18
"""Numbers in a block: 1 MiB in float32, about a core's second-level cache."""

Result = TypeVar("Result")


def by_columns(
    work: Callable[[slice], Result], n_rows: int, n_columns: int, block: int | None = None
) -> list[Result]:
    """Returns what ``work`` makes of each block of columns, in order.

    Args:
        work: Called once for each block, by any thread. It uses numpy, which lets other threads
            run meanwhile and keeps to the thread that it is called on (linear algebra, too: it is
            held to one thread while this function runs); torch would start threads of its own.
        n_rows: How many rows of the matrix ``work`` looks at.
        n_columns: The matrix's columns.
        block: Columns per block; None makes blocks of ``CELLS`` numbers.
    """
    step = max(1, CELLS // max(n_rows, 1)) if block is None else block
    slices = [slice(start, min(start + step, n_columns)) for start in range(0, n_columns, step)]
    n_threads = min(torch.get_num_threads(), len(slices))
    with _linear_algebra().limit(limits=1, user_api="blas"):
        if n_threads < 2:
            return [work(columns) for columns in slices]
        with ThreadPoolExecutor(n_threads) as threads:
            return list(threads.map(work, slices))


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


@cache
def _linear_algebra() -> ThreadpoolController:
    """What sets the threads of numpy's linear algebra; looking for the libraries takes a while."""
    return ThreadpoolController()
