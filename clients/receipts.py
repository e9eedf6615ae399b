"""Signed receipts of everything that left a site, chained so that none can go missing unseen.

``receipts.jsonl`` is append-only: each line is a JSON object that holds the SHA-256 of the line
before it and a signature of its own content, Ed25519 or ECDSA with SHA-256. A line is on disk
before the reply leaves, so nothing leaves without a receipt. ``receipts.head.json``, signed too,
says how long the chain was: a chain that ends earlier was cut.

Whoever owns the disk and the key can write another history. A hash that was noted elsewhere (an
auditor's mail, a ticket) holds against that too: ``fedface site receipts --verify --anchor HASH``.
And whoever restores an old copy of both files together shows an old history that is true as far as
it goes; the anchor finds that as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from clients.files import append, drop_torn_line, replace
from clients.signing import (
    KeyUnusable,
    PrivateKey,
    PublicKey,
    holds,
    load_private_key,
    load_public_key,
    make_private_key,
    opened_line,
    public_bytes,
    signed_line,
    write_public_key,
)

Body = dict[str, Any]
"""What a receipt says, as plain JSON values."""

CHAIN, HEAD, KEY, PUBLIC = (
    "receipts.jsonl",
    "receipts.head.json",
    "receipts.key",
    "receipts.pub",
)
NOTHING = sha256(b"").hexdigest()
"""What stands for the line before the first."""


class ReceiptError(ValueError):
    """Receipts cannot be written or are not what they should be."""


class BrokenChain(ReceiptError):
    """A chain is not what was written; ``line`` counts from 1, 0 means the chain as a whole."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        """Says where and why."""
        super().__init__(f"{path}:{line}: {why}" if line else f"{path}: {why}")
        self.line = line


@dataclass(frozen=True)
class Verified:
    """A chain that holds.

    Attributes:
        n: Receipts in it.
        head: SHA-256 of the last line; note it elsewhere as an anchor.
        n_beyond_head: Receipts behind the one that the head file names; a crash leaves one.
    """

    n: int
    head: str
    n_beyond_head: int


@dataclass
class _Tail:
    """What was read of a chain so far: bytes, lines, the hash of the last one, the receipts."""

    offset: int = 0
    n: int = 0
    last: str = NOTHING
    bodies: list[Body] = field(default_factory=list)


class Receipts:
    """The receipts of one site; several processes may append."""

    def __init__(self, folder: Path, key: Path | None = None) -> None:
        """Keeps receipts in ``folder``; nothing is read or made before they are used.

        Args:
            folder: The site's own folder.
            key: The signing key (PEM or OpenSSH, Ed25519 or EC, without a passphrase); None makes
                an Ed25519 key of its own at the first receipt.
        """
        self.folder = folder
        self.path = folder / CHAIN
        self.key_path = key or folder / KEY
        self._tail = _Tail()

    def append(self, decide: Callable[[Sequence[Body]], Mapping[str, Any]]) -> Body:
        """Writes the receipt that ``decide`` returns, on disk when this returns.

        ``decide`` gets all receipts so far, and no other process writes one meanwhile; what it
        raises is raised on, and nothing is written. A last line that a crash left half written is
        dropped first, and a receipt says so.

        Raises:
            ReceiptError: If the chain is broken, or key or folder cannot be used; the reply that
                the receipt is for must then not leave.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(f"{self.path}.lock", mode=0o600):
                signer = self._signer()
                torn = drop_torn_line(self.path)
                self._read_on()
                if torn:
                    self._write(signer, {"event": "recovered", "dropped_bytes": torn})
                return self._write(signer, decide(self._tail.bodies))
        except KeyUnusable as error:
            raise ReceiptError(str(error)) from None
        except (OSError, NotImplementedError) as error:
            raise ReceiptError(f"{self.path}: needed a writable folder, found: {error}") from None

    def bodies(self) -> list[Body]:
        """Returns what the receipts say, in order; checked for order and hashes, not signatures.

        Raises:
            BrokenChain: If lines are missing, changed or out of order.
            ReceiptError: If the file cannot be read.
        """
        try:
            self._read_on()
        except OSError as error:
            raise ReceiptError(f"{self.path}: needed a readable file, found: {error}") from None
        return list(self._tail.bodies)

    def _write(self, signer: PrivateKey, body: Mapping[str, Any]) -> Body:
        """Appends one line, then moves the head; the caller holds the lock."""
        tail = self._tail
        content = {
            **body,
            "sequence": tail.n + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "previous": tail.last,
        }
        line = signed_line(signer, content)
        append(self.path, line)
        tail.offset, tail.n = tail.offset + len(line), tail.n + 1
        tail.last = sha256(line).hexdigest()
        tail.bodies.append(content)
        head = signed_line(signer, {"sequence": tail.n, "hash": tail.last})
        replace(self.folder / HEAD, head, 0o644)
        return content

    def _read_on(self) -> None:
        """Reads the lines that were added since the last time, by this or another process."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._tail.offset:
            self._tail = _Tail()  # an older file lies there: the checks below decide
        if size > self._tail.offset:
            with self.path.open("rb") as stream:
                stream.seek(self._tail.offset)
                for line in stream:
                    _follow(self.path, self._tail, line)
        head = _head(self.folder)
        if head is None and self._tail.n > 1:
            raise BrokenChain(self.path, 0, f"needed its head file {HEAD}, found none")
        if head is not None and self._tail.n < head["sequence"]:
            raise BrokenChain(
                self.path,
                self._tail.n + 1,
                f"needed {head['sequence']} receipts as {HEAD} says, found {self._tail.n}",
            )

    def _signer(self) -> PrivateKey:
        if self.key_path == self.folder / KEY and not self.key_path.exists():
            if self.path.is_file() and self.path.stat().st_size:
                raise ReceiptError(f"{self.key_path}: needed the key of {self.path}, found none")
            make_private_key(self.key_path)
        signer = load_private_key(self.key_path)
        public = self.folder / PUBLIC
        if not public.is_file():
            write_public_key(public, signer)
        elif public_bytes(load_public_key(public)) != public_bytes(signer.public_key()):
            raise ReceiptError(
                f"{self.key_path}: needed the private half of {public}, found another key "
                "(a new key starts a new folder of receipts)"
            )
        return signer


def verify(folder: Path, public: Path | None = None, anchor: str | None = None) -> Verified:
    """Checks every receipt in ``folder``: order, hashes, signatures, and that none is missing.

    Args:
        folder: Where the receipts are.
        public: The public key (PEM or OpenSSH); None takes the one that lies beside them, which
            shows that the chain was not changed by somebody without the site's key.
        anchor: SHA-256 of a line that was noted earlier; it must be in the chain.

    Raises:
        BrokenChain: Names the first line that does not hold, and why.
        ReceiptError: If the key cannot be used or the file not be read.
    """
    path = folder / CHAIN
    try:
        key = load_public_key(public or folder / PUBLIC)
    except KeyUnusable as error:
        raise ReceiptError(str(error)) from None
    tail, anchored = _Tail(), anchor in (None, NOTHING)
    hashed: dict[int, str] = {0: NOTHING}
    try:
        with path.open("rb") as stream:
            for line in stream:
                signature = _follow(path, tail, line)
                if not holds(key, signature, tail.bodies.pop()):
                    raise BrokenChain(path, tail.n, "the signature does not hold")
                hashed[tail.n] = tail.last
                anchored = anchored or tail.last == anchor
    except OSError as error:
        raise ReceiptError(f"{path}: needed a readable file, found: {error.strerror}") from None
    n_at_head = _check_head(path, _head(folder), key, hashed)
    if not anchored:
        raise BrokenChain(path, 0, f"needed a receipt with the noted hash {anchor}, found none")
    return Verified(tail.n, tail.last, tail.n - n_at_head)


def _follow(path: Path, tail: _Tail, line: bytes) -> bytes:
    """Adds ``line`` to what was read, if it is the one that comes next; returns its signature."""
    number, opened = tail.n + 1, opened_line(line)
    if opened is None:
        torn = "" if line.endswith(b"\n") else ", cut off (a crash while writing?)"
        raise BrokenChain(path, number, f"needed a receipt, found another text{torn}")
    content, signature = opened
    if content.get("sequence") != number:
        raise BrokenChain(
            path, number, f"needed receipt {number}, found {content.get('sequence')!r:.40}"
        )
    if content.get("previous") != tail.last:
        raise BrokenChain(path, number, "it does not follow the line before it")
    tail.offset, tail.n = tail.offset + len(line), number
    tail.last = sha256(line).hexdigest()
    tail.bodies.append(content)
    return signature


def _head(folder: Path) -> Body | None:
    """The head file's content and signature as one mapping, or None if there is none."""
    path = folder / HEAD
    if not path.is_file():
        return None
    opened = opened_line(path.read_bytes())
    if opened is None or not isinstance(opened[0].get("sequence"), int):
        raise BrokenChain(path, 1, "needed the head of the chain, found another text")
    return {**opened[0], "signed": opened}


def _check_head(
    path: Path, head: Mapping[str, Any] | None, key: PublicKey, hashed: Mapping[int, str]
) -> int:
    """How many receipts the head file vouches for; the chain must have them."""
    n = max(hashed)
    if head is None:
        if n > 1:
            raise BrokenChain(path, 0, f"needed its head file {HEAD}, found none")
        return 0
    content, signature = head["signed"]
    if not holds(key, signature, content):
        raise BrokenChain(path.with_name(HEAD), 1, "the signature does not hold")
    sequence = int(content["sequence"])
    if sequence > n:
        raise BrokenChain(path, n + 1, f"needed {sequence} receipts as {HEAD} says, found {n}")
    if hashed.get(sequence) != content.get("hash"):
        raise BrokenChain(path, sequence, f"it is not the line that {HEAD} names")
    return sequence
