"""A site's private memory: its head stays in Flower's ``Context.state`` and on the site's disk.

Class centres are face templates, so the head never enters a reply. Flower forgets a simulated
client's context when the process ends; the copy on disk lets a site rejoin a resumed run in the
very state it had. The two latest rounds are kept, because the server may resume from the round
before the one that the site has already finished.

Where the site's people are known, a head says whose rows it holds: who joined since starts with a
fresh row, and who left has none.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clients.people import Register
from clients.withdrawal import PEOPLE, aligned, people_of

_HEAD, _META = "private-head", "private-head-meta"
_FILE = re.compile(r"head-round-(\d{6})\.safetensors")


@dataclass(frozen=True)
class SiteState:
    """The head of one client, kept between its rounds.

    Attributes:
        folder: The site's own folder, or None to keep the head in the context alone.
        people: Pseudonyms of the head's rows in order; empty where nobody keeps count of people.
        register: Where it is written down who was trained on in which round, or None.
        run: The run, by the name that the register shall know it by.
    """

    folder: Path | None
    people: tuple[str, ...] = ()
    register: Register | None = None
    run: str = ""

    def load(
        self, context: Context, server_round: int, fresh: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor] | None:
        """Returns the head that this site had before ``server_round``, or None at its start.

        Args:
            context: What Flower keeps for the node.
            server_round: The round that begins.
            fresh: A new head, for the rows of people who were not in the kept one; None returns
                the head as it was kept.

        Raises:
            ValueError: If the file of that round is damaged.
        """
        meta = context.state.get(_META)
        head = context.state.get(_HEAD)
        if (
            isinstance(meta, ConfigRecord)
            and isinstance(head, ArrayRecord)
            and int(str(meta["round"])) < server_round
        ):
            kept = {name: torch.from_numpy(np.array(a.numpy())) for name, a in head.items()}
            return self._of_today(kept, json.loads(str(meta.get(PEOPLE, "[]"))), fresh)
        earlier = [r for r in self._rounds() if r < server_round]
        if not earlier:
            return None
        path = self._path(max(earlier))
        return self._of_today(_read(path), people_of(path) or (), fresh)

    def save(self, context: Context, server_round: int, head: Mapping[str, Tensor]) -> None:
        """Keeps the head that this site has after ``server_round``."""
        context.state[_HEAD] = ArrayRecord({k: Array(v.cpu().numpy()) for k, v in head.items()})
        people = json.dumps(self.people)
        context.state[_META] = ConfigRecord({"round": server_round, PEOPLE: people})
        if self.register is not None:
            self.register.took_part(self.run, server_round, self.people)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(server_round)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        tensors = {k: v.cpu().contiguous() for k, v in head.items()}
        save_file(tensors, partial, metadata={PEOPLE: people} if self.people else None)
        os.replace(partial, path)
        for outdated in [r for r in self._rounds() if r > server_round]:
            self._path(outdated).unlink(missing_ok=True)
        for outdated in sorted(self._rounds())[:-2]:
            self._path(outdated).unlink(missing_ok=True)

    def _of_today(
        self,
        kept: dict[str, Tensor],
        kept_people: Sequence[str],
        fresh: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """The kept head with the rows of today's people, where they are known."""
        if fresh is None or not kept_people or not self.people:
            return kept
        return aligned(kept, kept_people, fresh, self.people)

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        names = (_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(name[1]) for name in names if name]

    def _path(self, server_round: int) -> Path:
        return (self.folder or Path()) / f"head-round-{server_round:06d}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: needed a whole head, found: {error}") from None
