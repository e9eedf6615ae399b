"""Decoded data on disk: built once, then memory-mapped by every process that needs it.

An entry is a folder under ``FEDFACE_CACHE`` (else ``~/.cache/fedface``), named by the SHA-256 of
its key. It is written beside its final place, flushed, then renamed, so a crash leaves no entry;
a file lock lets one process build while the others wait. Entries hold faces: only their owner may
read them, and deleting the folder is always safe.

Each array is stored with its length and the hash of its first MiB. A missing, cut or overwritten
file is noticed and rebuilt; a flipped bit deep inside a large image file is not.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fedface.data.faces import Faces, Skip

FORMAT_VERSION = 1
"""Part of every key: raise it when the layout of an entry changes."""

_NOTES = "entry.json"
_HEAD = 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What one cache entry holds.

    Attributes:
        arrays: Name -> array, each stored as ``<name>.npy``; no object arrays.
        notes: Anything JSON can carry.
    """

    arrays: Mapping[str, NDArray[Any]]
    notes: Mapping[str, Any]


def cache_folder() -> Path:
    """Returns the folder of all entries: ``FEDFACE_CACHE``, else ``~/.cache/fedface``."""
    chosen = os.environ.get("FEDFACE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fedface"


def cached_faces(key: Mapping[str, object], build: Callable[[], Faces]) -> Faces:
    """Returns the faces that ``build`` makes, from disk when ``key`` was built before.

    Args:
        key: Everything the result depends on, as JSON values or paths: the loader's name, its
            settings, and what identifies the source files (names, sizes, times).
        build: Decodes the source; called at most once by all the processes that ask together.

    Returns:
        Faces whose images are a read-only memory map.

    Raises:
        TypeError: If ``key`` holds something that JSON cannot carry.
        ValueError: If the cache folder cannot be written or read; names ``FEDFACE_CACHE``.
    """
    return cached(key, build, _pack_faces, _unpack_faces)


def cached(
    key: Mapping[str, object],
    build: Callable[[], T],
    pack: Callable[[T], Entry],
    unpack: Callable[[Entry], T],
) -> T:
    """Returns ``unpack`` of the entry of ``key``, which is ``pack(build())`` the first time.

    ``unpack`` gets arrays as read-only memory maps and shows that an entry is damaged by raising
    ``ValueError``, ``KeyError`` or ``TypeError``; such an entry is built again. ``key`` and the
    errors are those of :func:`cached_faces`. An entry that exists needs no write permission.
    """
    folder = cache_folder()
    entry = folder / _entry_name(key)
    found = _read(entry, unpack)
    if found is not None:
        return found[0]
    with _locked(folder, entry.name):
        found = _read(entry, unpack)
        if found is None:
            _write(entry, pack(build()))
            found = _read(entry, unpack)
    if found is None:
        raise ValueError(f"FEDFACE_CACHE needs to keep what is written, found {entry} unreadable")
    return found[0]


def spill(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Returns equally shaped uint8 ``images`` stacked, on disk rather than in memory.

    They lie in a file without a name in the cache folder, which is gone once the array is: a
    builder can decode more than fits into memory.

    Raises:
        ValueError: If there is no image, if shapes differ, or if the folder cannot be written.
    """
    folder = cache_folder()
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by the with below)
    with file:
        n_images, shape = 0, None
        for image in images:
            shape = shape or image.shape
            if image.shape != shape or image.dtype != np.uint8:
                raise ValueError(f"spill needs uint8 {shape}, got {image.dtype} {image.shape}")
            with _explained(folder):
                file.write(np.ascontiguousarray(image).data)
            n_images += 1
        if shape is None:
            raise ValueError("spill needs at least one image, got none")
        with _explained(folder):
            file.flush()
            return np.memmap(file, np.uint8, mode="r", shape=(n_images, *shape))


def file_digest(rows: Iterable[object]) -> str:
    """Returns the SHA-256 of ``rows`` of plain values: a short key part for long file lists."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def _pack_faces(faces: Faces) -> Entry:
    return Entry(
        arrays={"images": faces.images, "identities": faces.identities},
        notes={"names": faces.names, "skipped": [[s.what, s.why] for s in faces.skipped]},
    )


def _unpack_faces(entry: Entry) -> Faces:
    return Faces(
        images=entry.arrays["images"],
        identities=np.array(entry.arrays["identities"]),
        names=tuple(entry.notes["names"]),
        skipped=tuple(Skip(what, why) for what, why in entry.notes["skipped"]),
    )


def _canonical(value: object) -> bytes:
    def plain(other: object) -> str:
        if isinstance(other, Path):
            return str(other)
        raise TypeError(f"a cache key needs JSON values or paths, got {type(other).__name__}")

    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"), default=plain)
    return text.encode()


def _entry_name(key: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical([FORMAT_VERSION, dict(key)])).hexdigest()


def _fingerprint(path: Path) -> list[object]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.sha256(file.read(_HEAD)).hexdigest()]


def _read(entry: Path, unpack: Callable[[Entry], T]) -> tuple[T] | None:
    """The unpacked entry as a 1-tuple, or None if it is absent or damaged."""
    with _explained(entry.parent):
        try:
            stored = json.loads((entry / _NOTES).read_text())
            arrays = {}
            for name, fingerprint in stored["arrays"].items():
                path = entry / f"{name}.npy"
                if _fingerprint(path) != fingerprint:
                    return None
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            return (unpack(Entry(arrays, stored["notes"])),)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def _write(entry: Path, content: Entry) -> None:
    """Writes ``content`` beside ``entry``, then moves it there; the caller holds the lock."""
    n_bytes = sum(array.nbytes for array in content.arrays.values())
    with _explained(entry.parent, n_bytes):
        for leftover in (entry, *entry.parent.glob(f"{entry.name}.new-*")):
            if leftover.exists():
                shutil.rmtree(leftover)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.new-", dir=entry.parent))
        try:
            fingerprints = {}
            for name, array in content.arrays.items():
                path = folder / f"{name}.npy"
                with path.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                fingerprints[name] = _fingerprint(path)
            with (folder / _NOTES).open("w") as text:
                json.dump({"arrays": fingerprints, "notes": dict(content.notes)}, text)
                text.flush()
                os.fsync(text.fileno())
            folder.rename(entry)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(folder: Path, n_bytes: int = 0) -> Iterator[None]:
    """Turns an operating system error into one that names the setting to change."""
    try:
        yield
    except OSError as error:
        room = f" with {n_bytes / 1e6:.1f} MB free" if n_bytes else ""
        raise ValueError(
            f"FEDFACE_CACHE needs a readable and writable folder{room}, "
            f"found {folder}: {error.strerror or error}"
        ) from error
