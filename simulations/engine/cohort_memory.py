"""One matrix for the updates of a cohort, which workers of the same machine write into.

The memory has no name in any file system: workers open it through the server's process, and it is
gone when the last of them is, however they end.
"""

import mmap
import os
from dataclasses import dataclass
from heapq import heappop, heappush
from weakref import finalize

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a worker finds the matrix.

    Attributes:
        path: The open file of the server's process.
        inode: The file's identity: on another machine the path may lead elsewhere.
        n_rows: Rows of the matrix.
        dim: Columns.
    """

    path: str
    inode: tuple[int, int]
    n_rows: int
    dim: int


class Row:
    """A row of the matrix; it is given out again when nobody holds this object any more.

    Attributes:
        index: Its number.
        values: ``(dim,)`` float32.
        place: Where workers find the matrix, or None where memory cannot be shared.
    """

    def __init__(self, index: int, values: Tensor, place: Place | None) -> None:
        """Made by :meth:`CohortMemory.row` alone."""
        self.index = index
        self.values = values
        self.place = place


class CohortMemory:
    """A ``(n_rows, dim)`` float32 matrix whose pages cost memory once they are written.

    Attributes:
        matrix: The values.
        place: How workers find it, or None where memory cannot be shared.
    """

    def __init__(self, n_rows: int, dim: int) -> None:
        """Reserves the rows.

        Raises:
            ValueError: If there would be no values.
        """
        if n_rows * dim < 1:
            raise ValueError(f"a cohort's memory needs n_rows, dim >= 1, got {n_rows}, {dim}")
        self.place: Place | None = None
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("fedface-cohort")
            finalize(self, os.close, file)
            os.ftruncate(file, 4 * n_rows * dim)
            self.place = Place(f"/proc/{os.getpid()}/fd/{file}", _inode(file), n_rows, dim)
            self.matrix = _mapped(file, n_rows, dim)
        else:
            self.matrix = torch.empty(n_rows, dim)
        self._free = list(range(n_rows))

    @property
    def is_full(self) -> bool:
        """Whether all rows are held."""
        return not self._free

    def row(self) -> Row:
        """Returns the first row that nobody holds.

        Raises:
            IndexError: If all rows are held.
        """
        index = heappop(self._free)
        row = Row(index, self.matrix[index], self.place)
        finalize(row, heappush, self._free, index).atexit = False
        return row


def opened(place: Place) -> Tensor | None:
    """Returns the matrix at ``place``, or None if this process cannot reach it."""
    try:
        file = os.open(place.path, os.O_RDWR)
    except OSError:
        return None
    try:
        return _mapped(file, place.n_rows, place.dim) if _inode(file) == place.inode else None
    finally:
        os.close(file)


def _inode(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _mapped(file: int, n_rows: int, dim: int) -> Tensor:
    """The file as a matrix; the mapping lives as long as the tensor."""
    memory = mmap.mmap(file, 4 * n_rows * dim)
    return torch.frombuffer(memory, dtype=torch.float32).view(n_rows, dim)
