"""A passive party's memory between messages: in Flower's ``Context.state``, and on its own disk.

Bottom model, momentum, account, noise transcript: none of it is ever sent. Any process can answer
the next message from the context alone, so results do not depend on which worker does; and the
process that answered last need not read it, because it has the party still. The two latest rounds
are kept on disk: the server may resume from the round before the one that the party has finished.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from flwr.app import ConfigRecord, Context
from safetensors import SafetensorError
from torch import Tensor

_RECORD = "passive-party"
_FILE = re.compile(r"party-round-(\d{6})\.safetensors")


@dataclass(frozen=True)
class PartyMemory:
    """What a passive party remembers.

    Attributes:
        tensors: Of the party, as :meth:`fedface.vertical.passive.PassiveParty.tensors` gives them;
            from before the training release that waits for its gradient, if one does.
        transcript: A digest of all messages that it acted on so far, hexadecimal.
        n_released: Training releases so far; the number of the last one.
        pending: The rows of the release that waits for its gradient; none if nothing waits.
        is_stale: Whether the bottom model has changed since embeddings were released for
            inference.
    """

    tensors: dict[str, Tensor]
    transcript: str
    n_released: int = 0
    pending: tuple[int, ...] = field(default=())
    is_stale: bool = False


@dataclass(frozen=True)
class PartyState:
    """Where one party's memory is kept.

    Attributes:
        folder: The party's own folder, or None to keep it in the context alone.
    """

    folder: Path | None

    def transcript(self, context: Context) -> str | None:
        """Returns the transcript of the memory in ``context``, or None if there is no memory."""
        record = context.state.get(_RECORD)
        return str(record["transcript"]) if isinstance(record, ConfigRecord) else None

    def load(self, context: Context, server_round: int) -> PartyMemory | None:
        """Returns what the context holds, else what was saved before ``server_round``, else None.

        Raises:
            ValueError: If the file of that round is damaged.
        """
        record = context.state.get(_RECORD)
        if isinstance(record, ConfigRecord):
            content = record["tensors"]
            tensors = safetensors.torch.load(content if isinstance(content, bytes) else b"")
            return _memory(tensors, {name: str(record[name]) for name in _FACTS})
        earlier = [r for r in self._rounds() if r < server_round]
        return _read(self._path(max(earlier))) if earlier else None

    def keep(self, context: Context, memory: PartyMemory) -> None:
        """Keeps ``memory`` in the context, for the next message."""
        content = safetensors.torch.save({k: v.contiguous() for k, v in memory.tensors.items()})
        context.state[_RECORD] = ConfigRecord({"tensors": content, **_facts(memory)})

    def save(self, memory: PartyMemory, server_round: int) -> None:
        """Writes what the party is after ``server_round``, for a resumed run."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(server_round)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        tensors = {k: v.contiguous() for k, v in memory.tensors.items()}
        safetensors.torch.save_file(tensors, partial, metadata=_facts(memory))
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
        rounds = sorted(self._rounds())
        earlier = [r for r in rounds if r <= server_round]
        for outdated in {*rounds} - {*earlier[-2:]}:
            self._path(outdated).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        names = (_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(name[1]) for name in names if name]

    def _path(self, server_round: int) -> Path:
        return (self.folder or Path()) / f"party-round-{server_round:06d}.safetensors"


_FACTS = ("transcript", "n_released", "pending", "is_stale")


def _facts(memory: PartyMemory) -> dict[str, str]:
    """Everything but the tensors, as texts."""
    return {
        "transcript": memory.transcript,
        "n_released": str(memory.n_released),
        "pending": " ".join(map(str, memory.pending)),
        "is_stale": str(int(memory.is_stale)),
    }


def _memory(tensors: dict[str, Tensor], facts: dict[str, str]) -> PartyMemory:
    return PartyMemory(
        tensors=tensors,
        transcript=facts["transcript"],
        n_released=int(facts["n_released"]),
        pending=tuple(map(int, facts["pending"].split())),
        is_stale=facts["is_stale"] == "1",
    )


def _read(path: Path) -> PartyMemory:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _memory(tensors, facts)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: needed a whole party, found: {error}") from None
