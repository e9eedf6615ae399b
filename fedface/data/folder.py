"""Aligned face images in folders, one folder per identity: ``<root>/<identity>/<image>``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator

from fedface.config import Config
from fedface.data.cache import cached_faces, file_digest, spill
from fedface.data.faces import Faces, Skip
from fedface.data.images import DECODER, SUFFIXES, read_image, require_same_shape


class FolderFaces(Config):
    """A folder of identity folders; anything that is no image is skipped and named.

    Attributes:
        root: The folder of identity folders.
        size: Height and width in pixels that images are cropped and resized to, or None to keep
            them, which needs images that are all alike.
        min_images: Identities with fewer readable images are left out.
        max_images: At most this many images per identity, the first readable ones in name order;
            None means all.
    """

    name: Literal["folder"] = "folder"
    root: Path
    size: PositiveInt | None = None
    min_images: PositiveInt = 1
    max_images: PositiveInt | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        require_limits(self.min_images, self.max_images)
        return self

    def load(self) -> Faces:
        """Returns the faces under ``root``; errors as in :func:`load_folder`."""
        return load_folder(self.name, self.root, self.size, self.min_images, self.max_images)


@dataclass(frozen=True)
class _File:
    name: str
    n_bytes: int
    changed_ns: int


@dataclass(frozen=True)
class _Person:
    name: str
    files: tuple[_File, ...]


def require_limits(min_images: int, max_images: int | None) -> None:
    """Checks that an identity can have ``min_images`` and at most ``max_images`` images.

    Raises:
        ValueError: If ``max_images`` is smaller.
    """
    if max_images is not None and max_images < min_images:
        raise ValueError(
            f"max_images needs to be at least min_images={min_images}, got max_images={max_images}"
        )


def load_folder(
    loader: str, root: Path, size: int | None, min_images: int, max_images: int | None
) -> Faces:
    """Returns the faces in ``<root>/<identity>/<image>``, decoded once and then cached.

    Identities and images are in the order of their names as strings (``s1, s10, s2``), whatever
    the file system's. Names that begin with a dot are skipped.

    Args:
        loader: The dataset's name, for the cache and for errors.
        root: The folder of identity folders.
        size: Height and width of the result in pixels, or None to keep the images' own.
        min_images: Fewest readable images of an identity.
        max_images: Most images of an identity, or None.

    Returns:
        Faces; ``skipped`` names stray files, empty folders, images that cannot be decoded and
        identities that these left too small. Identities that never had ``min_images`` files,
        and files beyond ``max_images``, are counted in one line each.

    Raises:
        ValueError: If ``root`` is no readable folder or holds no identity with ``min_images``
            images; if ``size`` is None and images differ in size; if the cache is not usable.
    """
    people, skipped = _scan(loader, root)
    key = {
        "loader": loader,
        "root": root.resolve(),
        "size": size,
        "min_images": min_images,
        "max_images": max_images,
        "decoder": DECODER,
        "files": file_digest(_listing(people, skipped)),
    }
    needed = (
        f"{loader}: root needs an identity with min_images={min_images} readable images, found "
        f"{root} with {len(people)} identities of at most {max(len(p.files) for p in people)} files"
    )

    def build() -> Faces:
        left_out = list(skipped)
        with _readable(loader):
            usable = _usable(root, people, size, min_images, max_images, left_out)
            return _decode(usable, left_out, needed)

    return cached_faces(key, build)


@contextmanager
def _readable(loader: str) -> Iterator[None]:
    """Turns an operating system error into one that names the field ``root``."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{loader}: root needs a readable folder of identity folders, "
            f"found {error.filename}: {error.strerror}"
        ) from error


def _scan(loader: str, root: Path) -> tuple[list[_Person], list[Skip]]:
    """All identities with at least one image file, and what else lies there."""
    people, skipped = [], []
    with _readable(loader):
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            if entry.name.startswith("."):
                skipped.append(Skip(entry.name, "hidden"))
            elif not entry.is_dir():
                skipped.append(Skip(entry.name, "not an identity folder"))
            else:
                person, others = _scan_person(entry)
                skipped += others
                if person.files:
                    people.append(person)
                else:
                    skipped.append(Skip(entry.name, "holds no image file"))
    if not people:
        raise ValueError(
            f"{loader}: root needs folders of images, one per identity, found {root} with "
            f"no such folder and {len(skipped)} other things"
        )
    return people, skipped


def _scan_person(folder: os.DirEntry[str]) -> tuple[_Person, list[Skip]]:
    files, skipped = [], []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        what = f"{folder.name}/{entry.name}"
        if entry.name.startswith("."):
            skipped.append(Skip(what, "hidden"))
        elif not entry.is_file():
            skipped.append(Skip(what, "not a file"))
        elif Path(entry.name).suffix.lower() not in SUFFIXES:
            skipped.append(Skip(what, "not an image file by its ending"))
        else:
            status = entry.stat()
            files.append(_File(entry.name, status.st_size, status.st_mtime_ns))
    return _Person(folder.name, tuple(files)), skipped


def _listing(people: list[_Person], skipped: list[Skip]) -> Iterator[object]:
    for person in people:
        yield [person.name, [[f.name, f.n_bytes, f.changed_ns] for f in person.files]]
    for skip in skipped:
        yield [skip.what, skip.why]


def _usable(
    root: Path,
    people: list[_Person],
    size: int | None,
    min_images: int,
    max_images: int | None,
    skipped: list[Skip],
) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """Yields identity, image name and image of what is kept; appends the rest to ``skipped``."""
    n_small = n_beyond = 0
    for person in people:
        if len(person.files) < min_images:
            n_small += 1
            continue
        images: dict[str, NDArray[np.uint8]] = {}
        for n_seen, file in enumerate(person.files):
            if len(images) == max_images:
                n_beyond += len(person.files) - n_seen
                break
            what = f"{person.name}/{file.name}"
            image = read_image(root / what, size, what)
            if isinstance(image, Skip):
                skipped.append(image)
            else:
                images[what] = image
        if len(images) < min_images:
            why = f"{len(images)} readable images, min_images={min_images}"
            skipped.append(Skip(person.name, why))
            continue
        for what, image in images.items():
            yield person.name, what, image
    if n_small:
        skipped.append(Skip(f"{n_small} identities", f"fewer than min_images={min_images} files"))
    if n_beyond:
        skipped.append(Skip(f"{n_beyond} images", f"beyond max_images={max_images} per identity"))


def _decode(
    usable: Iterator[tuple[str, str, NDArray[np.uint8]]], skipped: list[Skip], needed: str
) -> Faces:
    first = next(usable, None)
    if first is None:
        raise ValueError(needed)
    names: list[str] = []
    identities: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for name, what, image in chain([first], usable):
            require_same_shape(image, what, first[2].shape, first[1])
            if name not in names[-1:]:
                names.append(name)
            identities.append(len(names) - 1)
            yield image

    stacked = spill(images())
    return Faces(stacked, np.array(identities, np.int64), tuple(names), tuple(skipped))
