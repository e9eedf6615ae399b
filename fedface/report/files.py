"""Files that are written whole or not at all, and refused by name when they are damaged.

A file is written beside its place, brought to the disk and renamed: a kill, a full disk or a power
cut leaves the old file or the new. Tensor files carry a SHA-256 of all that they hold. It shows
damage and edits; it is no signature: whoever can write the file can also write a new checksum.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CHECKSUM = "sha256"
"""The fact that holds a tensor file's checksum."""
_HEADER = "fedface"


class RunFolderError(ValueError):
    """A run folder is missing, in the way or not what was expected."""


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``: a reader sees the old file or the new one, whole.

    Raises:
        OSError: If it cannot be written; it names ``path``, and nothing is left behind.
    """
    _write(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Adds ``line`` and a line feed to ``path``, and waits until they are on the disk.

    Raises:
        OSError: If they cannot be written whole; the file then stays as it was.
    """
    with _naming(path), path.open("ab", buffering=0) as stream:
        start = stream.seek(0, os.SEEK_END)
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[stream.write(data) :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(start)
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: str) -> str:
    """Writes tensors and ``facts`` about them as one safetensors file; returns its checksum.

    Raises:
        OSError: As :func:`write_atomically` does.
    """
    contiguous = {name: value.contiguous().clone() for name, value in tensors.items()}
    checksum = _checksum(contiguous, facts)
    # One entry alone: safetensors writes several in an order that differs from file to file.
    header = json.dumps({**facts, CHECKSUM: checksum}, sort_keys=True)
    _write(path, save(contiguous, {_HEADER: header}))
    return checksum


def read_tensors(path: Path, **facts: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, and the facts in its header (its checksum among them).

    Args:
        path: A file that :func:`write_tensors` wrote. One whose header has plain entries (written
            before there were checksums) is read as it is.
        facts: What the header must say.

    Raises:
        RunFolderError: If the file cannot be read, is cut off, holds something else than was
            written or says other facts.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _facts(dict(file.metadata() or {}))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"{path}: needed a whole checkpoint, found: {error}") from None
    found = {name: value for name, value in header.items() if name != CHECKSUM}
    if CHECKSUM in header and (computed := _checksum(tensors, found)) != header[CHECKSUM]:
        raise RunFolderError(
            f"{path}: needed the checkpoint as it was written (sha256 {header[CHECKSUM][:16]}), "
            f"found it changed ({computed[:16]})"
        )
    for name, value in facts.items():
        if header.get(name) != value:
            raise RunFolderError(
                f"{path}: needed a checkpoint of {name} {value}, found one of {header.get(name)}"
            )
    return tensors, header


def _facts(header: Mapping[str, str]) -> dict[str, str]:
    """What :func:`write_tensors` wrote down; files from before have their facts as entries."""
    if _HEADER not in header:
        return dict(header)
    facts = json.loads(header[_HEADER])
    if not isinstance(facts, dict) or not isinstance(facts.get(CHECKSUM), str):
        raise ValueError("a header without a checksum")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in ``path``.

    Raises:
        RunFolderError: If there is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: needed a JSON object, found: {error}") from None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path}: needed a JSON object, found {type(content).__name__}")
    return content


def remove_partial(folder: Path) -> None:
    """Removes what writers that were killed left half written below ``folder``."""
    for path in folder.rglob("*.partial-*"):
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with _naming(path):
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts ``path`` into errors of the operating system, which do not always name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Brings the renaming to the disk, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 over the facts and over every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for name, value in sorted(tensors.items()):
        head = json.dumps([name, str(value.dtype), list(value.shape)])
        digest.update(len(head).to_bytes(8, "little") + head.encode())
        if value.numel():
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
