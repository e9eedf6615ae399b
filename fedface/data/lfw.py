"""Labeled Faces in the Wild: faces, and its official verification pairs.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
Recognition in Unconstrained Environments", UMass Amherst technical report 07-49, 2007,
https://vis-www.cs.umass.edu/lfw/.

View 1 (``pairsDevTrain.txt``, ``pairsDevTest.txt``) is for development, View 2 (``pairs.txt``, ten
folds) for the final figure. The ten folds share no person with each other, but View 2 shows most
people of View 1: a model that was trained on LFW people is evaluated on
``pairs.without(training names)`` only.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator

from fedface.config import Config
from fedface.data.cache import file_digest, spill
from fedface.data.faces import Faces, Skip
from fedface.data.folder import load_folder, require_limits
from fedface.data.images import DECODER, read_image, require_same_shape
from fedface.data.pairs import Pairs, cached_pairs

Photo = tuple[str, int]
"""A person's name and the photo's number, from 1."""


@dataclass(frozen=True)
class PairLine:
    """One line of a pairs file; ``line`` counts from 1, ``fold`` from 0."""

    left: Photo
    right: Photo
    fold: int
    line: int


class LfwFaces(Config):
    """The people of LFW, ``<root>/<Name>/<Name>_NNNN.jpg``.

    Attributes:
        root: The folder of people, or one that holds it as ``lfw`` or ``images112``.
        size: As in :class:`fedface.data.folder.FolderFaces`, as are the next two.
        min_images: Identities with fewer readable images are left out.
        max_images: At most this many images per identity, or None.
    """

    name: Literal["lfw"] = "lfw"
    root: Path
    size: PositiveInt | None = None
    min_images: PositiveInt = 1
    max_images: PositiveInt | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        require_limits(self.min_images, self.max_images)
        return self

    def load(self) -> Faces:
        """Returns the faces; errors as in :func:`fedface.data.folder.load_folder`."""
        people = people_folder(self.root)
        return load_folder(self.name, people, self.size, self.min_images, self.max_images)


class LfwPairs(Config):
    """Official LFW verification pairs.

    Attributes:
        root: The folder that holds the pairs file and the people (see :class:`LfwFaces`).
        pairs: The pairs file, relative to ``root`` or absolute.
        size: As in :class:`fedface.data.folder.FolderFaces`.
    """

    name: Literal["lfw_pairs"] = "lfw_pairs"
    root: Path
    pairs: Path = Path("pairs.txt")
    size: PositiveInt | None = None

    def load(self) -> Pairs:
        """Returns all pairs of the file, in its order; images by name, each once.

        Raises:
            ValueError: If the pairs file is missing or broken, or an image it names is missing or
                cannot be decoded (a protocol with pairs left out would be another protocol): names
                file and line; if ``size`` is None and images differ; if the cache is not usable.
        """
        path = self.root / self.pairs
        lines = read_pairs(path)
        folder = people_folder(self.root)
        wanted = {p: f"{path}:{n.line}" for n in reversed(lines) for p in (n.left, n.right)}
        key = {
            "loader": self.name,
            "root": folder.resolve(),
            "size": self.size,
            "decoder": DECODER,
            "pairs": hashlib.sha256(path.read_bytes()).hexdigest(),
            "files": file_digest(_status(folder, photo, wanted[photo]) for photo in sorted(wanted)),
        }
        return cached_pairs(
            key, lambda: _assembled(lines, sorted(wanted), _decoded(folder, wanted, self.size))
        )


def people_folder(root: Path) -> Path:
    """Returns the folder of people in ``root``: itself, or its ``lfw`` or ``images112``."""
    for inner in ("lfw", "images112"):
        if (root / inner).is_dir():
            root = root / inner
    return root


def read_pairs(path: Path) -> list[PairLine]:
    """Returns the pairs of an official LFW pairs file.

    The first line holds ``n_folds n_per_fold``, or ``n_per_fold`` alone for the single fold of the
    development files. Each fold has that many genuine pairs (``name i j``), then as many impostor
    pairs (``name i other_name j``).

    Raises:
        ValueError: If the file is missing or breaks the format; names file, line, need, finding.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: needed UTF-8 text, found other bytes") from None
    except OSError as error:
        raise ValueError(f"{path}: needed an LFW pairs file, found: {error.strerror}") from None
    rows = [line.split() for line in text.rstrip().split("\n")]
    header = rows[0] if rows else []
    if len(header) not in (1, 2) or not all(map(_is_count, header)):
        raise ValueError(f"{path}:1: needed 'n_folds n_per_fold' or 'n_per_fold', found {header}")
    n_folds = int(header[0]) if len(header) == 2 else 1
    n_per_fold = int(header[-1])
    if len(rows) - 1 != 2 * n_folds * n_per_fold:
        raise ValueError(
            f"{path}: needed {2 * n_folds * n_per_fold} pairs for {n_folds} folds of "
            f"2 x {n_per_fold}, found {len(rows) - 1}"
        )
    return [
        _pair_line(row, number, n_per_fold, f"{path}:{number + 2}")
        for number, row in enumerate(rows[1:])
    ]


def _pair_line(row: list[str], number: int, n_per_fold: int, where: str) -> PairLine:
    fold, place = divmod(number, 2 * n_per_fold)
    if place < n_per_fold:
        need = "a genuine pair 'name i j' of two photos"
        good = len(row) == 3 and row[1] != row[2]
        names, numbers = [row[0], row[0]] if row else [], row[1:]
    else:
        need = "an impostor pair 'name i other_name j' of two people"
        good = len(row) == 4 and row[0] != row[2]
        names, numbers = row[0::2], row[1::2]
    if not good or not all(map(_is_count, numbers)) or not all(map(_is_name, names)):
        raise ValueError(f"{where}: needed {need}, found {' '.join(row)!r}")
    left, right = zip(names, map(int, numbers), strict=True)
    return PairLine(left, right, fold, number + 2)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0


def _is_name(text: str) -> bool:
    return text not in (".", "..") and not set(text) & {"/", "\\", "\0"}


def _file(folder: Path, photo: Photo) -> Path:
    name, number = photo
    return folder / name / f"{name}_{number:04d}.jpg"


def _status(folder: Path, photo: Photo, where: str) -> list[object]:
    path = _file(folder, photo)
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{where}: needed {path}, found: {error.strerror}") from None
    return [*photo, status.st_size, status.st_mtime_ns]


def _decoded(
    folder: Path, wanted: Mapping[Photo, str], size: int | None
) -> Iterator[NDArray[np.uint8]]:
    """Yields the wanted photos by name; ``wanted`` says where each is first asked for."""
    first: tuple[tuple[int, ...], str] | None = None
    for photo in sorted(wanted):
        path = _file(folder, photo)
        try:
            image = read_image(path, size, str(path))
        except OSError as error:
            raise ValueError(f"{wanted[photo]}: needed {path}, found: {error.strerror}") from error
        if isinstance(image, Skip):
            raise ValueError(f"{wanted[photo]}: needed an image, found {path}: {image.why}")
        first = first or (image.shape, path.name)
        require_same_shape(image, path.name, *first)
        yield image


def _assembled(
    lines: list[PairLine], photos: list[Photo], images: Iterable[NDArray[np.uint8]]
) -> Pairs:
    index = {photo: number for number, photo in enumerate(photos)}
    return Pairs(
        images=spill(images),
        left=np.array([index[line.left] for line in lines], np.int64),
        right=np.array([index[line.right] for line in lines], np.int64),
        same=np.array([line.left[0] == line.right[0] for line in lines], np.bool_),
        fold=np.array([line.fold for line in lines], np.int64),
        people=tuple((line.left[0], line.right[0]) for line in lines),
    )
