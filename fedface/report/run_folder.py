"""The folder of one run: what was asked, where it ran, what happened, and the models.

Layout::

    config.yaml        the resolved configuration
    environment.json   package versions, machine, git commit
    events.jsonl       one JSON object per fact, in order
    checkpoints/       round-000007.safetensors (model), state-round-000007.safetensors
    result.json        the final figures; present only when the run is complete
    .running           locked while a process works in the folder

Files are written beside their place and renamed, so that a kill leaves the old file or the new
(:mod:`fedface.report.files`). A model's header names the checksum of the state that was saved with
it, so that the two cannot be mixed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from fedface.report.files import (
    CHECKSUM,
    RunFolderError,
    append_line,
    read_json,
    read_tensors,
    remove_partial,
    write_atomically,
    write_tensors,
)

__all__ = ["Checkpoint", "RunFolder", "RunFolderError", "write_atomically"]

_MODEL = re.compile(r"round-(\d{6})\.safetensors")
_LOCK = ".running"


@dataclass(frozen=True)
class Checkpoint:
    """The federation after one round.

    Attributes:
        server_round: The last completed round.
        model: Trainable parameters and buffers of the global model, by name.
        state: What the server remembers beside the model (the aggregator's state), by name.
    """

    server_round: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run's folder."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> "RunFolder":
        """Makes the folder and writes what was asked and where it runs.

        Raises:
            RunFolderError: If the folder holds a run already or cannot be written.
        """
        folder = cls(path)
        if folder.exists():
            raise RunFolderError(
                f"{path}: needed a free run folder, found a run (--resume continues it, "
                "--replace deletes it)"
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_atomically(path / "environment.json", json.dumps(dict(environment), indent=2))
            (path / "events.jsonl").touch()
            # Last, because this file says that a run was started here.
            write_atomically(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        except OSError as error:
            raise RunFolderError(f"{path}: needed a writable folder, found: {error}") from None
        return folder

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.yaml").is_file()

    def parts(self) -> list["RunFolder"]:
        """Returns the run folders at or below this one in which somebody works or worked."""
        return [RunFolder(lock.parent) for lock in sorted(self.path.rglob(_LOCK))]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as it was written.

        Raises:
            RunFolderError: If no run was started here, or the file is damaged.
        """
        path = self.path / "config.yaml"
        if not self.exists():
            raise RunFolderError(f"{self.path}: needed a run folder, found no config.yaml")
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, ValueError, OSError) as error:
            found = " ".join(str(error).split())
            raise RunFolderError(f"{path}: needed the run's settings, found: {found}") from None
        if not isinstance(content, dict):
            found = type(content).__name__
            raise RunFolderError(f"{path}: needed the run's settings, found {found}")
        return content

    @property
    def environment(self) -> dict[str, Any]:
        """Where the run was started.

        Raises:
            RunFolderError: If the file is missing or damaged.
        """
        return read_json(self.path / "environment.json")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes that ask out of the folder inside; a killed one lets go.

        Raises:
            RunFolderError: If another process is at work there, or the folder cannot be written.
        """
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"{self.path}: needed a run folder that nobody works in, found a process at work"
            ) from None
        except OSError as error:
            raise RunFolderError(f"{self.path}: needed a writable folder, found: {error}") from None
        try:
            yield
        finally:
            lock.release()

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds one fact to ``events.jsonl``; NaN and infinity are refused.

        Raises:
            ValueError: If a number is not finite or a value is no plain JSON.
            OSError: If it cannot be written, a full disk for example; no half line is left.
        """
        append_line(self.path / "events.jsonl", json.dumps(dict(event), allow_nan=False))

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the recorded facts in order, all or those whose ``event`` is ``kind``.

        A last line that a kill left half written is left out.
        """
        path = self.path / "events.jsonl"
        if not path.is_file():
            return []
        facts = []
        lines = path.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                facts.append(json.loads(line))
            except json.JSONDecodeError:
                if number < len(lines):
                    raise RunFolderError(f"{path}:{number}: needed one JSON object") from None
        return [fact for fact in facts if kind is None or fact.get("event") == kind]

    def forget_after(self, server_round: int) -> None:
        """Drops the facts and models of rounds after ``server_round``, and half-written files.

        Raises:
            OSError: If the folder cannot be written.
        """
        remove_partial(self.path)
        kept = [fact for fact in self.events() if fact.get("round", 0) <= server_round]
        write_atomically(
            self.path / "events.jsonl",
            "".join(json.dumps(fact, allow_nan=False) + "\n" for fact in kept),
        )
        for later in [r for r in self.checkpoint_rounds() if r > server_round]:
            self._model_path(later).unlink()
            self._state_path(later).unlink(missing_ok=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; the model file comes last and makes it count.

        Every round's model is kept; of the server's state only the two latest.

        Raises:
            OSError: If it cannot be written; the round before is still there, whole.
        """
        server_round = checkpoint.server_round
        number = str(server_round)
        state = write_tensors(self._state_path(server_round), checkpoint.state, round=number)
        model_path = self._model_path(server_round)
        write_tensors(model_path, checkpoint.model, round=number, state=state)
        for outdated in self.checkpoint_rounds()[:-2]:
            self._state_path(outdated).unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """Returns the last round that was saved whole, or None.

        Raises:
            RunFolderError: If a file of that round is damaged, was changed or belongs to another
                round. It is named; nobody falls back to an earlier round unasked.
        """
        for server_round in reversed(self.checkpoint_rounds()):
            state_path = self._state_path(server_round)
            if state_path.is_file():
                number = str(server_round)
                model, header = read_tensors(self._model_path(server_round), round=number)
                state, own = read_tensors(state_path, round=number)
                if header.get("state", own.get(CHECKSUM)) != own.get(CHECKSUM):
                    raise RunFolderError(
                        f"{state_path}: needed the state that was saved with the model of round "
                        f"{server_round}, found another"
                    )
                return Checkpoint(server_round, model, state)
        return None

    def model(self, server_round: int) -> dict[str, Tensor]:
        """Returns the global model after ``server_round``, by name.

        Raises:
            RunFolderError: If it is missing or damaged.
        """
        return read_tensors(self._model_path(server_round), round=str(server_round))[0]

    def checkpoint_rounds(self) -> list[int]:
        """Returns the rounds whose model is there, ascending."""
        folder = self.path / "checkpoints"
        names = (_MODEL.fullmatch(p.name) for p in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(name[1]) for name in names if name)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the final figures, which marks the run as complete."""
        write_atomically(
            self.path / "result.json", json.dumps(dict(result), indent=2, allow_nan=False)
        )

    def result(self) -> dict[str, Any] | None:
        """Returns the final figures, or None while the run is not complete.

        Raises:
            RunFolderError: If the file is damaged.
        """
        path = self.path / "result.json"
        return read_json(path) if path.is_file() else None

    def _model_path(self, server_round: int) -> Path:
        return self.path / "checkpoints" / f"round-{server_round:06d}.safetensors"

    def _state_path(self, server_round: int) -> Path:
        return self.path / "checkpoints" / f"state-round-{server_round:06d}.safetensors"
