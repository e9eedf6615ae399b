"""A person withdraws: tombstone, data, cache, head, and an honest word on the models.

The order is that of a crash: the tombstone comes first and holds from then on, whatever happens to
the rest; doing it again finishes what was begun. Files are unlinked, not overwritten: what a disk
or a backup keeps is outside of this module.

What a model has learned of a person cannot be taken out of its weights. It was trained with the
person from some round on, so it has to be trained again from there; before that round it never saw
the person (Mora and Bellavista 2025: traces stay detectable fifty rounds after a client left).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from clients.files import replace
from clients.people import Register
from fedface.data.cache import cache_folder

PEOPLE = "people"
"""The entry of a head file's metadata that lists whose rows it holds, as JSON."""

Action = Literal["no action", "retrain from round", "full retrain"]


@dataclass(frozen=True)
class Verdict:
    """What has to happen to one run's models.

    Attributes:
        run: The run.
        rounds: The rounds in which the person was trained on here, ascending.
        action: What it takes for the models to be free of the person.
    """

    run: str
    rounds: tuple[int, ...]

    @property
    def action(self) -> Action:
        """What it takes for the run's later models to be free of the person."""
        if not self.rounds:
            return "no action"
        return "full retrain" if self.rounds[0] <= 1 else "retrain from round"

    @property
    def keep(self) -> int:
        """The last round whose model never saw the person; 0 for none."""
        return self.rounds[0] - 1 if self.rounds else 0


@dataclass(frozen=True)
class Withdrawal:
    """What was done for one person.

    Attributes:
        pseudonym: Under which the site remembers that the person withdrew.
        new: Whether there was no tombstone before.
        images: Image files that were deleted.
        cached: Entries of the image cache that were deleted.
        heads: Head files from which the person's row was taken.
        dropped_heads: Head files that were deleted whole, since they do not say whose rows they
            hold.
        released: Kept copies of earlier updates that were deleted; a server that asks for such a
            round again is answered by a new training, which the privacy account pays.
        verdicts: One for each run that the site trained in.
    """

    pseudonym: str
    new: bool
    images: int
    cached: int
    heads: int
    dropped_heads: int
    released: int
    verdicts: tuple[Verdict, ...]

    @property
    def known(self) -> bool:
        """Whether the site had anything of that person."""
        return bool(self.images or self.heads or any(v.rounds for v in self.verdicts))


def withdraw(register: Register, person: str, root: Path | None = None) -> Withdrawal:
    """Removes ``person`` from a site and says what the models need.

    Args:
        register: The site's.
        person: The name of the person's folder, as the images are sorted.
        root: The folder of people's folders; None where the images cannot be deleted one by one
            (the tombstone keeps them out of every training all the same).

    Raises:
        ValueError: If ``person`` is no plain folder name or a file of the site is damaged.
        OSError: If something cannot be deleted; the tombstone is set by then.
    """
    if not person or person in (".", "..") or "/" in person or "\0" in person:
        raise ValueError(f"person needs the name of a folder of images, got {person!r}")
    (pseudonym,) = register.pseudonyms([person])
    new = register.bury(pseudonym)
    n_images = 0 if root is None else _delete_images(root / person)
    n_cached = _forget_cached(person)
    changed, dropped = _clean_heads(register.folder, pseudonym)
    released = _forget_released(register.folder)
    rounds = register.rounds_of(pseudonym)
    verdicts = tuple(Verdict(run, rounds.get(run, ())) for run in register.runs())
    return Withdrawal(pseudonym, new, n_images, n_cached, changed, dropped, released, verdicts)


def aligned(
    kept: Mapping[str, Tensor],
    kept_people: Sequence[str],
    fresh: Mapping[str, Tensor],
    people: Sequence[str],
) -> dict[str, Tensor]:
    """Returns the ``kept`` head with a row for each of ``people``, in their order.

    Whoever was not in it before gets the row of the ``fresh`` head; whoever left has none. Tensors
    without a row per person stay as they were kept.
    """
    if list(kept_people) == list(people):
        return dict(kept)
    place = {person: row for row, person in enumerate(kept_people)}
    head: dict[str, Tensor] = {}
    for name, new in fresh.items():
        old = kept[name]
        if old.ndim == 0 or len(old) != len(kept_people) or len(new) != len(people):
            head[name] = old
            continue
        head[name] = new.clone()
        for row, person in enumerate(people):
            if person in place:
                head[name][row] = old[place[person]]
    return head


def _delete_images(folder: Path) -> int:
    if folder.is_symlink():
        folder.unlink()  # what it points to is not the site's
        return 0
    n = sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if folder.is_dir():
        shutil.rmtree(folder)
    return n


def _forget_cached(person: str) -> int:
    """Deletes every decoded data set that holds the person; it is decoded anew when needed."""
    n = 0
    for notes in cache_folder().glob("*/entry.json"):
        try:
            names = json.loads(notes.read_text())["notes"]["names"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(names, list) and person in names:
            shutil.rmtree(notes.parent)
            n += 1
    return n


def _clean_heads(folder: Path, pseudonym: str) -> tuple[int, int]:
    """Takes the person's row out of every kept head; returns how many changed and were deleted."""
    changed = dropped = 0
    for path in sorted(folder.rglob("head-round-*.safetensors")):
        people = people_of(path)
        if people is None:
            path.unlink()
            dropped += 1
        elif pseudonym in people:
            left = [person for person in people if person != pseudonym]
            rows = [row for row, person in enumerate(people) if person != pseudonym]
            head = {
                name: v[rows].contiguous() if v.ndim and len(v) == len(people) else v
                for name, v in load_file(path).items()
            }
            replace(path, save(head, metadata={PEOPLE: json.dumps(left)}))
            changed += 1
    for leftover in folder.rglob("head-round-*.partial-*"):
        leftover.unlink()
    return changed, dropped


def _forget_released(folder: Path) -> int:
    """Deletes the kept copies of earlier updates, which hold heads too."""
    copies = sorted(folder.rglob("released-*.safetensors"))
    for path in copies:
        path.unlink()
    return len(copies)


def people_of(path: Path) -> tuple[str, ...] | None:
    """Returns whose rows a head file holds, None if it does not say so or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(PEOPLE)
        people = None if text is None else json.loads(text)
    except (SafetensorError, ValueError):
        return None
    return tuple(people) if isinstance(people, list) else None
