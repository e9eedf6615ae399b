"""What a site remembers about people without naming them: who withdrew, and who was in which round.

A person's pseudonym is an HMAC-SHA256 of the name under a secret of the site. Whoever has these
files alone learns no name; whoever has the secret can check a name, so it stays with the site.

Files in the site's own folder: ``people.key`` (the secret), ``tombstones.jsonl`` (who withdrew),
``lineage.jsonl`` (one line for each round that the site trained in, with the digest of its roster)
and ``rosters/`` (the pseudonyms behind a digest).
"""

import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clients.files import append, drop_torn_line, replace
from clients.policy import canonical, sha256_of

KEY, TOMBSTONES, LINEAGE, ROSTERS = "people.key", "tombstones.jsonl", "lineage.jsonl", "rosters"


@dataclass(frozen=True)
class Register:
    """The people of one site, by pseudonym.

    Attributes:
        folder: The site's own folder.
        first_secret: 32 bytes to begin with where the site has no secret yet, for simulations that
            shall come out the same each time; None draws them, as a real site must.
    """

    folder: Path
    first_secret: bytes | None = None

    def pseudonyms(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the pseudonym of each name; makes the site's secret when it is first needed.

        Raises:
            ValueError: If the secret is damaged.
        """
        secret = self._secret()
        return tuple(hmac.digest(secret, n.encode(), "sha256").hex()[:32] for n in names)

    def withdrawn(self) -> frozenset[str]:
        """Returns the pseudonyms of those who withdrew.

        Raises:
            ValueError: If the file is damaged: then nobody can say who is missing.
        """
        return frozenset(str(line["person"]) for line in self._lines(TOMBSTONES))

    def remaining(self, names: Sequence[str]) -> list[bool]:
        """Returns for each name whether that person is still in: True unless withdrawn."""
        gone = self.withdrawn()
        if not gone:
            return [True] * len(names)
        return [pseudonym not in gone for pseudonym in self.pseudonyms(names)]

    def bury(self, person: str) -> bool:
        """Sets a tombstone for the pseudonym ``person``; returns whether there was none yet."""
        if person in self.withdrawn():
            return False
        self._append(TOMBSTONES, {"person": person, "time": _now()})
        return True

    def took_part(self, run: str, server_round: int, people: Sequence[str]) -> None:
        """Writes down that ``people`` (pseudonyms) were trained on in a round of ``run``."""
        digest = sha256_of(sorted(people))
        roster = self.folder / ROSTERS / f"{digest}.json"
        if not roster.is_file():
            roster.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(roster, canonical(sorted(people)))
        self._append(LINEAGE, {"run": run, "round": server_round, "roster": digest, "time": _now()})

    def rounds_of(self, person: str) -> dict[str, tuple[int, ...]]:
        """Returns run -> the rounds, ascending, in which the pseudonym ``person`` was trained on.

        Raises:
            ValueError: If a file is damaged or missing.
        """
        rounds: dict[str, set[int]] = {}
        inside: dict[str, bool] = {}
        for line in self._lines(LINEAGE):
            digest = str(line["roster"])
            if digest not in inside:
                inside[digest] = person in self._roster(digest)
            if inside[digest]:
                rounds.setdefault(str(line["run"]), set()).add(int(line["round"]))
        return {run: tuple(sorted(found)) for run, found in sorted(rounds.items())}

    def runs(self) -> tuple[str, ...]:
        """Returns all runs that the site trained in."""
        return tuple(sorted({str(line["run"]) for line in self._lines(LINEAGE)}))

    def _roster(self, digest: str) -> frozenset[str]:
        path = self.folder / ROSTERS / f"{digest}.json"
        try:
            people = json.loads(path.read_bytes())
        except (OSError, ValueError):
            raise ValueError(f"{path}: needed a roster, found none that is whole") from None
        if sha256_of(people) != digest:
            raise ValueError(f"{path}: needed the roster of its name, found another")
        return frozenset(people)

    def _secret(self) -> bytes:
        path = self.folder / KEY
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = path.with_name(f".{KEY}.new-{os.getpid()}")
            replace(new, self.first_secret or secrets.token_bytes(32))
            try:
                os.link(new, path)  # of two processes one wins, and both use the winner's
            except FileExistsError:
                pass
            finally:
                new.unlink(missing_ok=True)
        secret = path.read_bytes()
        if len(secret) != 32:
            raise ValueError(f"{path}: needed 32 bytes, found {len(secret)}")
        return secret

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        drop_torn_line(self.folder / name)
        append(self.folder / name, canonical(line) + b"\n")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file; a last one that a crash left half written is not there yet."""
        path = self.folder / name
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise ValueError(f"{path}: needed one JSON object a line, found others") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
