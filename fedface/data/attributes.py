"""Attributes of people in pictures: a few numbers for each picture, from another source than it.

For vertical federations in which a party holds no picture: a register's entries, measurements,
answers. Each source is a frozen config with ``load(faces, settings) -> (n, k)`` float32, a row for
each picture of a set of faces. Bring attributes to about [-1, 1]: nothing scales them.
"""

import csv
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, model_validator

from fedface.config import Config
from fedface.data.face_parameters import IDENTITY, sample_identities
from fedface.data.faces import Faces
from fedface.data.renderer import RenderedFaces
from fedface.random import numpy_stream

_NAMES = tuple(parameter.name for parameter in IDENTITY)


class RenderedAttributes(Config):
    """What a rendered person is drawn from, with noise of its own for each picture.

    Attributes:
        parameters: Which of :data:`fedface.data.face_parameters.IDENTITY`, each in [-1, 1]; None
            takes all.
        noise: Standard deviation of what is added to each number, picture by picture.
    """

    name: Literal["renderer"] = "renderer"
    parameters: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    noise: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _known(self) -> Self:
        chosen = self.parameters or ()
        if unknown := sorted(set(chosen) - {*_NAMES}):
            raise ValueError(f"attributes.parameters need to be among {_NAMES}, got {unknown}")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"attributes.parameters need to differ, got {chosen}")
        return self

    def load(self, faces: Faces, settings: Config) -> NDArray[np.float32]:
        """Returns ``(n, k)`` attributes of the pictures of ``faces``, the same for the same faces.

        Args:
            faces: What ``settings`` loaded.
            settings: The set of faces; person i's numbers depend on its seed and i only.

        Raises:
            ValueError: If the faces are not rendered.
        """
        if not isinstance(settings, RenderedFaces):
            raise ValueError(
                "attributes of the renderer need rendered faces, got "
                f"{getattr(settings, 'name', type(settings).__name__)}"
            )
        columns = [_NAMES.index(name) for name in self.parameters or _NAMES]
        table = np.empty((len(faces.identities), len(columns)), np.float32)
        for i in range(faces.n_identities):
            rows = np.flatnonzero(faces.identities == i)
            person = sample_identities(1, numpy_stream(settings.seed, "rendered identity", i))
            drawn = numpy_stream(settings.seed, "rendered attributes", i).standard_normal(
                (len(rows), len(_NAMES))
            )
            table[rows] = (person.numpy() + self.noise * drawn)[:, columns]
        return table


class AttributeTable(Config):
    """A CSV file: a heading, then lines of a person's name, a picture's number and the attributes.

    Pictures of each person are counted from 0, in the order of the set of faces. Pictures that the
    file has no line for are an error, other lines are left alone.

    Attributes:
        path: The file, UTF-8.
    """

    name: Literal["csv"] = "csv"
    path: Path

    def load(self, faces: Faces, settings: Config) -> NDArray[np.float32]:
        """Returns ``(n, k)`` attributes of the pictures of ``faces``.

        Args:
            faces: Any faces.
            settings: Not used.

        Raises:
            ValueError: If the file cannot be read, a line is no line of numbers, stands twice or
                has another length, or a picture has none; names the file and the line.
        """
        found = self._read()
        wanted = record_ids(faces.identities, faces.names)
        if missing := [name for name in wanted if name not in found]:
            raise ValueError(
                f"{self.path}: needed a line for each of {len(wanted)} pictures, found none for "
                f"{len(missing)}, the first is {missing[0]}"
            )
        return np.array([found[name] for name in wanted], np.float32).reshape(len(wanted), -1)

    def _read(self) -> dict[str, list[float]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as stream:
                lines = list(csv.reader(stream))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path}: needed a CSV file, found: {error}") from None
        width = len(lines[0]) if lines else 0
        if width < 3:
            raise ValueError(
                f"{self.path}: needed a heading of person, number and attributes, "
                f"found {width} columns"
            )
        found: dict[str, list[float]] = {}
        for number, line in enumerate(lines[1:], 2):
            name, values = self._line(number, line, width)
            if name in found:
                raise ValueError(f"{self.path}:{number}: needed one line for {name}, found two")
            found[name] = values
        return found

    def _line(self, number: int, line: list[str], width: int) -> tuple[str, list[float]]:
        try:
            values = [float(text) for text in line[2:]]
            picture = int(line[1])
        except (ValueError, IndexError):
            values, picture = [], -1
        if len(line) != width or picture < 0 or not all(abs(v) <= 1e6 for v in values):
            raise ValueError(
                f"{self.path}:{number}: needed a name, a number from 0 and {width - 2} attributes "
                f"of at most 1e6, found {','.join(line)[:80]!r}"
            )
        return f"{line[0]}/{picture}", values


AnyAttributes = Annotated[RenderedAttributes | AttributeTable, Field(discriminator="name")]
"""Every source of attributes a YAML file can name."""


def record_ids(identities: NDArray[np.int64], names: tuple[str, ...]) -> list[str]:
    """Returns ``name/number`` of each picture: the person, and the number among his or hers."""
    seen: dict[int, int] = {}
    ids = []
    for person in identities.tolist():
        seen[person] = seen.get(person, -1) + 1
        ids.append(f"{names[person]}/{seen[person]}")
    return ids
