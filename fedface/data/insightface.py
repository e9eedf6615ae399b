"""InsightFace's file formats: verification packs (``.bin``) and training sets (``.rec``).

Sources: https://github.com/deepinsight/insightface, ``recognition/arcface_torch/dataset.py`` and
``eval/verification.py``. The images in both are aligned 112x112 JPEG crops.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator

from fedface.config import Config
from fedface.data.cache import cached_faces, spill
from fedface.data.faces import Faces, Skip
from fedface.data.folder import require_limits
from fedface.data.images import DECODER, decode_image, require_same_shape
from fedface.data.pairs import Pairs, cached_pairs
from fedface.data.recordio import IndexedRecords
from fedface.data.restricted_pickle import load_plain

_FLOAT32_EXACT = 2**24  # labels are float32: above it, neighbouring integers are not told apart


class InsightFaceBin(Config):
    """A verification pack such as ``lfw.bin`` or ``agedb_30.bin``.

    The pack is a pickle of (encoded images, same or not); images 2k and 2k + 1 form pair k. It is
    read without Python's unpickler, see :mod:`fedface.data.restricted_pickle`.

    Folds are contiguous runs of pairs, as InsightFace's ``KFold(n_folds, shuffle=False)``: the
    first ``n_pairs % n_folds`` folds hold one pair more. That suits InsightFace's own packs, which
    list genuine and impostor pairs fold by fold; a pack that lists all genuine pairs first gets
    folds of one kind. The pack names nobody, so ``people`` is None.

    Attributes:
        path: The ``.bin`` file.
        size: Height and width of the images in pixels, or None to keep the pack's own.
        n_folds: Folds of the evaluation.
    """

    name: Literal["insightface_bin"] = "insightface_bin"
    path: Path
    size: PositiveInt | None = None
    n_folds: PositiveInt = 10

    def load(self) -> Pairs:
        """Returns the pack's pairs, all of them, from the cache when it was decoded before.

        Raises:
            OSError: If the file is there but cannot be read.
            UnsafePickle: If the file is no pickle of plain data (a ValueError).
            ValueError: If the file is missing, does not hold two images per pair, has fewer
                pairs than folds, or an image cannot be decoded (a protocol with pairs left out
                would be another protocol); if ``size`` is None and images differ in size.
        """
        status = _status(self.name, "path", self.path)
        return cached_pairs(
            {**self.model_dump(mode="json"), "file": status, "decoder": DECODER}, self._build
        )

    def _build(self) -> Pairs:
        encoded, same = read_pack(self.path)
        if len(same) < self.n_folds:
            raise ValueError(
                f"{self.path}: insightface_bin needs n_pairs >= n_folds, got n_pairs={len(same)}, "
                f"n_folds={self.n_folds}"
            )
        return Pairs(
            images=spill(self._decoded(encoded)),
            left=np.arange(0, len(encoded), 2, dtype=np.int64),
            right=np.arange(1, len(encoded), 2, dtype=np.int64),
            same=same,
            fold=contiguous_folds(len(same), self.n_folds),
            people=None,
        )

    def _decoded(self, encoded: list[bytes]) -> Iterator[NDArray[np.uint8]]:
        """Yields the images; all are tried before those that cannot be decoded are named."""
        broken: list[str] = []
        first: tuple[tuple[int, ...], str] | None = None
        for i, content in enumerate(encoded):
            try:
                image = decode_image(content, self.size)
            except ValueError as error:
                broken.append(f"image {i} (pair {i // 2}) {error}")
                continue
            first = first or (image.shape, f"{self.path} image {i}")
            require_same_shape(image, f"image {i}", *first)
            yield image
        if broken:
            raise ValueError(
                f"{self.path}: needed {len(encoded)} complete images, found {len(broken)} that "
                f"are not: {'; '.join(broken[:3])}{'; ...' if len(broken) > 3 else ''}"
            )


class InsightFaceRecord(Config):
    """A training set in RecordIO, such as MS1MV2 or CASIA-WebFace.

    Record 0 holds two labels: images are the records from 1 to below the first, range records of
    the identities those from there to below the second. Where record 0 has a single label, every
    record is an image, as InsightFace has it. Who an image shows is the first label of its own
    record, as in InsightFace's training; the range records say the same in sorted packs and are
    stale in shuffled ones, so they are left alone, and so is the file ``property``.

    Images that cannot be decoded are skipped by name; a damaged record is an error.

    Attributes:
        root: The folder with ``train.rec`` and ``train.idx``.
        size: Height and width in pixels that images are cropped and resized to, or None to keep
            them, which needs images that are all alike.
        min_images: Identities with fewer readable images are left out.
        max_images: At most this many images per identity, the first readable ones; None means all.
        max_identities: At most this many of the identities that remain, by label; None means all.
    """

    name: Literal["insightface_rec"] = "insightface_rec"
    root: Path
    size: PositiveInt | None = None
    min_images: PositiveInt = 1
    max_images: PositiveInt | None = None
    max_identities: PositiveInt | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        require_limits(self.min_images, self.max_images)
        return self

    def load(self) -> Faces:
        """Returns the set's faces, from the cache when these files were decoded before.

        Identities are sorted by label, which is also their name; their images by record.

        Returns:
            Faces; ``skipped`` names images that cannot be decoded and identities that these left
            too small. Identities that never had ``min_images`` records, and records beyond
            ``max_images``, are counted in one line each.

        Raises:
            OSError: If a file is there but cannot be read.
            ValueError: If a file is missing; a record is missing or damaged (names file and
                position); a label is no integer in [0, 2^24), where float32 is exact; sizes differ
                without ``size``; or nothing is left.
        """
        files = [
            _status(self.name, "root", self.root / name) for name in ("train.rec", "train.idx")
        ]
        return cached_faces(
            {**self.model_dump(mode="json"), "files": files, "decoder": DECODER}, self._build
        )

    def _build(self) -> Faces:
        labels: list[int] = []
        skipped: list[Skip] = []
        with IndexedRecords(self.root / "train.rec", self.root / "train.idx") as records:
            images = spill(self._images(records, labels, skipped))
        people, identities = np.unique(labels, return_inverse=True)
        return Faces(
            images=images,
            identities=identities.astype(np.int64),
            names=tuple(str(label) for label in people),
            skipped=tuple(skipped),
        )

    def _images(
        self, records: IndexedRecords, labels: list[int], skipped: list[Skip]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yields the chosen images; appends each one's label, and what was left out."""
        n_small = n_beyond = n_identities = 0
        first: tuple[tuple[int, ...], str] | None = None
        for label, keys in keys_by_label(records).items():
            if n_identities == self.max_identities:
                break
            if len(keys) < self.min_images:
                n_small += 1
                continue
            images, n_left = self._decoded(records, keys, skipped)
            if len(images) < self.min_images:
                why = f"{len(images)} readable images, min_images={self.min_images}"
                skipped.append(Skip(f"identity {label}", why))
                continue
            n_identities, n_beyond = n_identities + 1, n_beyond + n_left
            for what, image in images.items():
                first = first or (image.shape, what)
                require_same_shape(image, what, *first)
                labels.append(label)
                yield image
        if not labels:
            raise ValueError(
                f"{records.path}: insightface_rec needs an identity with "
                f"min_images={self.min_images} readable images, found none"
            )
        if n_small:
            why = f"fewer than min_images={self.min_images} records"
            skipped.append(Skip(f"{n_small} identities", why))
        if n_beyond:
            why = f"beyond max_images={self.max_images} per identity"
            skipped.append(Skip(f"{n_beyond} images", why))

    def _decoded(
        self, records: IndexedRecords, keys: list[int], skipped: list[Skip]
    ) -> tuple[dict[str, NDArray[np.uint8]], int]:
        """One identity's images by name, at most ``max_images``, and how many were not tried."""
        images: dict[str, NDArray[np.uint8]] = {}
        for n_tried, key in enumerate(keys):
            if len(images) == self.max_images:
                return images, len(keys) - n_tried
            what, content = f"record {key}", records[key].content
            try:
                images[what] = decode_image(content, self.size)
            except ValueError as error:
                skipped.append(Skip(what, str(error)))
        return images, 0


def read_pack(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Returns a ``.bin`` file's encoded images, ``2 * n_pairs`` of them, and ``same``.

    ``same`` is ``(n_pairs,)`` bool; images 2k and 2k + 1 form pair k.

    Raises:
        OSError: If the file cannot be read.
        UnsafePickle: If the file is no pickle of plain data.
        ValueError: If the data is not a sequence of bytes and one of booleans, half as long.
    """
    content = load_plain(path)
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(f"{path}: needed a pair (images, same), found {_shape_of(content)}")
    images, same = content
    if not isinstance(images, tuple | list) or not isinstance(same, tuple | list):
        found = f"{_shape_of(images)} and {_shape_of(same)}"
        raise ValueError(f"{path}: needed a list of images and a list of booleans, found {found}")
    encoded = [image for image in images if isinstance(image, bytes)]
    flags = [flag for flag in same if isinstance(flag, int) and flag in (0, 1)]
    if len(encoded) < len(images) or len(flags) < len(same):
        raise ValueError(
            f"{path}: needed encoded images and booleans only, found {len(images) - len(encoded)} "
            f"other images and {len(same) - len(flags)} other booleans"
        )
    if len(encoded) != 2 * len(flags):
        raise ValueError(
            f"{path}: needed two images per pair, found {len(encoded)} images and "
            f"{len(flags)} pairs"
        )
    return encoded, np.array(flags, dtype=np.bool_)


def contiguous_folds(n_pairs: int, n_folds: int) -> NDArray[np.int64]:
    """Returns each pair's fold, ``(n_pairs,)``: runs whose lengths differ by at most one."""
    runs = np.array_split(np.arange(n_pairs), n_folds)
    return np.repeat(np.arange(n_folds, dtype=np.int64), [len(run) for run in runs])


def keys_by_label(records: IndexedRecords) -> dict[int, list[int]]:
    """Returns label -> keys of its image records, both ascending.

    Raises:
        ValueError: If a record is missing or damaged, or a label is no integer in [0, 2^24).
    """
    header = records.labels(0)
    if len(header) > 1:
        keys = list(range(1, _exact(header[0], f"{records.path}, record 0")))
    else:
        keys = sorted(records.offsets)
    found: dict[int, list[int]] = {}
    for key in keys:
        label = _exact(records.labels(key)[0], f"{records.path}, record {key}")
        found.setdefault(label, []).append(key)
    return dict(sorted(found.items()))


def _exact(label: np.float32, source: str) -> int:
    if not 0 <= label < _FLOAT32_EXACT or label != int(label):
        raise ValueError(f"{source}: needed a label that is an integer in [0, 2^24), got {label}")
    return int(label)


def _status(loader: str, field: str, path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(
            f"{loader}: {field} needs a readable file, found {path}: {error.strerror}"
        ) from error
    return [path.resolve(), status.st_size, status.st_mtime_ns]


def _shape_of(value: object) -> str:
    length = f" of {len(value)}" if isinstance(value, tuple | list | bytes) else ""
    return type(value).__name__ + length
