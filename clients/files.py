"""Files of a site that must survive a crash: appended lines, and files replaced as a whole."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def append(path: Path, line: bytes) -> None:
    """Writes ``line`` behind the end of ``path`` and waits until it is on disk.

    Where it cannot be written whole, a full disk for example, the file stays as it was.

    Raises:
        OSError: If the file cannot be written.
    """
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        start = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, start)  # a full disk leaves no half line
            raise
    finally:
        os.close(descriptor)
    if new:
        _sync_folder(path.parent)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes ``data`` to ``path``: a reader sees the old file or the new one, whole.

    Raises:
        OSError: If the folder cannot be written; the old file stays then.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_torn_line(path: Path) -> int:
    """Cuts off a last line without an end, which a crash left; returns how many bytes.

    Raises:
        OSError: If the file cannot be written.
    """
    if not path.is_file():
        return 0
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = _end_of_last_line(stream, size)
        if start < size:
            stream.truncate(start)
            stream.flush()
            os.fsync(stream.fileno())
        return size - start


def _end_of_last_line(stream: BinaryIO, size: int, step: int = 4096) -> int:
    """The offset behind the last line feed of an open file."""
    for start, data in _blocks_from_end(stream, size, step):
        if (found := data.rfind(b"\n")) >= 0:
            return start + found + 1
    return 0


def _blocks_from_end(stream: BinaryIO, size: int, step: int) -> Iterator[tuple[int, bytes]]:
    for stop in range(size, 0, -step):
        start = max(stop - step, 0)
        stream.seek(start)
        yield start, stream.read(stop - start)
