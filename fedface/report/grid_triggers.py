"""What each attack's trigger looks like, on rendered faces: no face of a data set is ever shown."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedface.attacks import AnyAttack
from fedface.attacks.backdoor import Backdoor
from fedface.data.renderer import RenderedFaces, to_bytes
from fedface.data.tensors import to_float
from fedface.report.run_folder import RunFolder, RunFolderError

N_FACES = 4
DEFAULT_SIZE = 112
"""Pixels of a face where no cell recorded the size."""
_MEMORY = "attack/"  # what simulations/coalition.py puts before the names of colluders' memory
_AMPLIFIED = 4


@dataclass(frozen=True)
class Picture:
    """One trigger.

    Attributes:
        attacks: The names in the grid of the attacks that have it.
        note: What the picture shows, or why there is none.
        image: A PNG as a ``data:`` address: faces without the trigger, with it, and the change;
            None if there is none to show.
        width: Of the image in pixels.
        height: Of the image in pixels.
    """

    attacks: str
    note: str
    image: str | None = None
    width: int = 0
    height: int = 0


def sample_faces(faces: Mapping[str, Any], size: int | None) -> tuple[Tensor, bool]:
    """Returns ``(n, 3, size, size)`` rendered faces in [-1, 1], and whether the grid uses them.

    Args:
        faces: ``base.data.faces`` of the grid: rendered ones are drawn with its seed and strength.
        size: The recorded height and width of the grid's images, if known.
    """
    own = faces.get("name") == "renderer"
    known = {key: faces[key] for key in ("seed", "strength", "size") if own and key in faces}
    if size is not None or "size" not in known:
        known["size"] = size or DEFAULT_SIZE
    drawn = RenderedFaces(n_identities=N_FACES, images_per_identity=1, **known).load()
    return to_float(drawn.images[:]), own


def picture(name: str, settings: Mapping[str, Any], faces: Tensor, cell: Path | None) -> Picture:
    """Returns the trigger of one attack on ``faces``.

    Args:
        name: The attack's name in the grid.
        settings: Its settings.
        faces: ``(n, 3, h, w)`` in [-1, 1].
        cell: The run folder whose last checkpoint holds the pattern of a learned trigger, if any.
    """
    try:
        attack: Any = TypeAdapter(AnyAttack).validate_python(dict(settings))
    except ValidationError:
        return Picture(name, "No picture: this version of fedface does not know its settings.")
    if not isinstance(attack, Backdoor) or not attack.goal.needs_trigger:
        return Picture(name, "No trigger: nobody has to wear anything.")
    memory = {} if cell is None else _memory(cell)
    trigger = attack.trigger_in(memory)
    note = f"Trigger {attack.trigger.name}, goal {attack.goal.name}."
    if attack.trigger.name == "learned":
        note += (
            f" As learned in {'/'.join(cell.parts[-5:])}."
            if cell is not None and trigger is not attack.trigger
            else " Learned in training; none was recorded, so this is what it starts from."
        )
    try:
        return Picture(name, note, *_drawn(faces, trigger))
    except ValueError as error:
        return Picture(name, f"No picture: {error}")


def grouped(pictures: Sequence[Picture]) -> list[Picture]:
    """Returns the pictures, attacks that show the same thing and say the same as one."""
    groups: dict[tuple[str | None, str], list[Picture]] = {}
    for shown in pictures:
        groups.setdefault((shown.image, shown.note), []).append(shown)
    return [
        replace(group[0], attacks=", ".join(shown.attacks for shown in group))
        for group in groups.values()
    ]


def _memory(cell: Path) -> dict[str, Tensor]:
    """What the colluders of a run remembered at its end; nothing where that is lost."""
    try:
        checkpoint = RunFolder(cell).latest()
    except (OSError, RunFolderError):
        return {}
    state = {} if checkpoint is None else checkpoint.state
    return {k.removeprefix(_MEMORY): v for k, v in state.items() if k.startswith(_MEMORY)}


def _drawn(faces: Tensor, trigger: Callable[[Tensor], Tensor]) -> tuple[str, int, int]:
    """Rows of faces without, with, and the change about mid-grey, amplified; width and height."""
    with torch.no_grad():
        worn = trigger(faces)
        change = (_AMPLIFIED * (worn - faces)).clamp(-1, 1)
        rows = [torch.cat(list(row), dim=2) for row in (faces, worn, change)]
        pixels = to_bytes((torch.cat(rows, dim=1)[None].clamp(-1, 1) + 1) / 2)[0]
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/png;base64,{encoded}", pixels.shape[1], pixels.shape[0]
