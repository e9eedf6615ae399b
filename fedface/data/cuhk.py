"""CUHK student faces: one photo and one drawn sketch of each of 188 people.

Wang, Tang, "Face Photo-Sketch Synthesis and Recognition", TPAMI 2009: the student part of the CUFS
collection, as ``<root>/{train,test}/{photos,sketches}/<number>.png``.

File names restart in each split: ``train/photos/00.png`` and ``test/photos/00.png`` show different
people, so an identity is split and name. The sketches follow the photo's geometry and hair: the set
is known to be easy. With one image of each kind it serves matching across kinds, not closed-set
training. Images are cropped to their middle square as they are, not aligned to the eyes' template.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedface.config import Config
from fedface.data.cache import cached_faces, file_digest, spill
from fedface.data.faces import Faces, Skip
from fedface.data.images import DECODER, SUFFIXES, read_image, require_same_shape

KINDS = ("photos", "sketches")
"""The folders of each split, in the order of the views."""

Person = tuple[str, str]
"""A person's split and file name."""


class CuhkFaces(Config):
    """Photos and sketches of the CUHK students.

    Attributes:
        root: The folder that holds ``train`` and ``test``.
        split: Which people: 88 in ``train``, 100 in ``test`` (in the set as published here).
        size: Height and width in pixels that images are cropped and resized to, or None to keep
            them, which needs images that are all alike.
    """

    name: Literal["cuhk"] = "cuhk"
    root: Path
    split: Literal["train", "test", "both"] = "both"
    size: PositiveInt | None = None

    def load(self) -> Faces:
        """Returns two images of each person, photo then sketch, people in order of split and name.

        Raises:
            ValueError: If the folder is missing or empty, a photo lacks its sketch or the other
                way round, an image cannot be decoded, or images differ and ``size`` is None: names
                the file.
        """
        people = self._people()
        key = {
            "loader": self.name,
            "root": self.root.resolve(),
            "split": self.split,
            "size": self.size,
            "decoder": DECODER,
            "files": file_digest(self._status(p, kind) for p in people for kind in KINDS),
        }
        return cached_faces(key, lambda: self._assembled(people))

    def views(self) -> tuple[Faces, Faces]:
        """Returns the photos and the sketches: row i of both shows the same person.

        Raises:
            ValueError: As :meth:`load`.
        """
        faces = self.load()
        photos, sketches = (
            Faces(faces.images[kind::2], faces.identities[kind::2], faces.names) for kind in (0, 1)
        )
        return photos, sketches

    def _people(self) -> list[Person]:
        people: list[Person] = []
        for split in ("train", "test") if self.split == "both" else (self.split,):
            found = [self._names(self.root / split / kind) for kind in KINDS]
            alone = sorted(found[0] ^ found[1])
            if alone or not found[0]:
                raise ValueError(
                    f"cuhk: {self.root / split} needs photos and sketches under the same names, "
                    f"found {len(found[0])} photos and {len(found[1])} sketches, without a "
                    f"counterpart: {alone[:3]}"
                )
            people += [(split, name) for name in sorted(found[0])]
        return people

    def _names(self, folder: Path) -> set[str]:
        try:
            return {
                path.name
                for path in folder.iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            }
        except OSError as error:
            raise ValueError(
                f"cuhk: root needs {folder.parent.name}/{folder.name}, "
                f"found {folder}: {error.strerror}"
            ) from error

    def _status(self, person: Person, kind: str) -> list[object]:
        split, name = person
        status = (self.root / split / kind / name).stat()
        return [split, kind, name, status.st_size, status.st_mtime_ns]

    def _assembled(self, people: list[Person]) -> Faces:
        return Faces(
            images=spill(self._decoded(people)),
            identities=np.repeat(np.arange(len(people)), 2).astype(np.int64),
            names=tuple(f"cuhk_{split}_{Path(name).stem}" for split, name in people),
        )

    def _decoded(self, people: list[Person]) -> Iterator[NDArray[np.uint8]]:
        first: tuple[tuple[int, ...], str] | None = None
        for split, name in people:
            for kind in KINDS:
                path = self.root / split / kind / name
                image = read_image(path, self.size, str(path))
                if isinstance(image, Skip):
                    raise ValueError(f"cuhk: needed an image, found {path}: {image.why}")
                first = first or (image.shape, path.name)
                require_same_shape(image, str(path), *first)
                yield image
