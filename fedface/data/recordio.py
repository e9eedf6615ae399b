"""Reads MXNet's indexed RecordIO (``.rec`` with ``.idx``) without MXNet.

A record is magic (uint32), a word whose upper 3 bits say which part it is and whose lower 29 bits
give the length, the data, and zeros up to a multiple of 4. Data that holds the magic at a multiple
of 4 is cut there and stored as parts (first 1, middle 2, last 3; a whole record is 0); the reader
puts the magic back. All little-endian. Source: dmlc-core ``recordio.h`` and ``recordio.cc``.

An image record starts with ``IRHeader``: flag (uint32), label (float32), id and id2 (uint64); if
flag > 0, that many float32 labels follow and replace ``label``. Source: ``mxnet.recordio.pack``.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xCED7230A
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


@dataclass(frozen=True)
class Record:
    """One unpacked record.

    Attributes:
        labels: ``(n_labels >= 1,)`` float32.
        content: What follows the header: the encoded image, or nothing.
    """

    labels: NDArray[np.float32]
    content: bytes


class IndexedRecords:
    """A ``.rec`` file, mapped into memory, whose records are read by key; a context manager.

    Attributes:
        offsets: Record key -> position in the file, in the order of the index.
    """

    def __init__(self, path: Path, index: Path) -> None:
        """Opens ``path`` and reads ``index``.

        Raises:
            OSError: If one of the files cannot be read.
            ValueError: If ``path`` is empty or ``index`` is no index (key, tab, position).
        """
        self.path = path
        self.offsets = read_index(index)
        with path.open("rb") as file:
            try:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise ValueError(f"{path}: needed records, found an empty file") from None

    def __enter__(self) -> "IndexedRecords":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self._content.close()

    def __getitem__(self, key: int) -> Record:
        """Returns the record of ``key``.

        Raises:
            ValueError: If there is none, or it is cut off or damaged; names file and position.
        """
        offset = self._offset(key)
        return unpack(self.read(offset), f"{self.path}, record {key} at byte {offset}")

    def labels(self, key: int) -> NDArray[np.float32]:
        """Returns the labels of ``key`` alone, without reading its content from the disk.

        Raises:
            ValueError: As ``records[key]``.
        """
        part, start, stop = self._part(self._offset(key))
        flag = self._content[start : start + 4]
        header = start + _HEADER.size + 4 * _word(flag)
        if part in (_WHOLE, _FIRST) and header <= stop:
            return unpack(self._content[start:header], str(self.path)).labels
        return self[key].labels

    def read(self, offset: int) -> bytes:
        """Returns the data of the record at byte ``offset``, its parts joined.

        Raises:
            ValueError: If no complete record lies there; names file and position.
        """
        part, start, stop = self._part(offset)
        if part not in (_WHOLE, _FIRST):
            raise self._damaged(offset, "the start of a record", f"part {part} of one")
        parts = [self._content[start:stop]]
        while part not in (_WHOLE, _LAST):
            offset = stop + (-stop) % 4
            part, start, stop = self._part(offset)
            if part not in (_MIDDLE, _LAST):
                raise self._damaged(offset, "the next part of a record", f"part {part}")
            parts.append(self._content[start:stop])
        return _MAGIC_BYTES.join(parts)

    def _offset(self, key: int) -> int:
        if key not in self.offsets:
            raise ValueError(f"{self.path}: needed a record {key}, found none in the index")
        return self.offsets[key]

    def _part(self, offset: int) -> tuple[int, int, int]:
        """Returns (which part of a record lies at ``offset``, where its data starts and stops)."""
        head = self._content[offset : offset + 8]
        if len(head) < 8:
            raise self._damaged(offset, "8 bytes of a record's head", f"{len(head)}")
        if head[:4] != _MAGIC_BYTES:
            raise self._damaged(offset, f"the magic {MAGIC:#x}", f"{_word(head[:4]):#x}")
        part, length = divmod(_word(head[4:]), 1 << 29)
        if offset + 8 + length > len(self._content):
            left = len(self._content) - offset - 8
            raise self._damaged(offset, f"a record of {length} bytes", f"{left} to the file's end")
        return part, offset + 8, offset + 8 + length

    def _damaged(self, offset: int, needed: str, found: str) -> ValueError:
        return ValueError(f"{self.path}: needed {needed} at byte {offset}, found {found}")


def unpack(data: bytes, source: str) -> Record:
    """Returns a record's ``data`` as labels and content; ``source`` stands first in each error.

    Raises:
        ValueError: If ``data`` is shorter than its header says.
    """
    if len(data) < _HEADER.size:
        raise ValueError(f"{source}: needed a header of {_HEADER.size} bytes, found {len(data)}")
    flag = _HEADER.unpack_from(data)[0]
    start = _HEADER.size + 4 * flag
    if len(data) < start:
        raise ValueError(f"{source}: needed {flag} labels in {start} bytes, found {len(data)}")
    labels = np.frombuffer(data[_HEADER.size : start] if flag else data[4:8], dtype="<f4")
    return Record(labels.astype(np.float32), data[start:])


def read_index(path: Path) -> dict[int, int]:
    """Returns an ``.idx`` file (one ``key<tab>position`` per line) as key -> position.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is none of these, or a key stands twice; names file and line.
    """
    offsets: dict[int, int] = {}
    for number, line in enumerate(path.read_text("ascii", errors="replace").splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 or not all(f.isdecimal() and len(f) < 20 for f in fields):
            raise ValueError(
                f"{path}: line {number}: needed a key and a position, found {line[:80]!r}"
            )
        key, offset = map(int, fields)
        if key in offsets:
            raise ValueError(f"{path}: line {number}: needed each key once, found {key} again")
        offsets[key] = offset
    return offsets


def _word(data: bytes) -> int:
    return int.from_bytes(data, "little")
