"""Pairs: the one type that every verification protocol loads into.

The contract of a protocol config is ``load() -> Pairs``, as that of a dataset is ``load() ->
Faces``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedface.data.cache import Entry, cached


@dataclass(frozen=True)
class Pairs:
    """Image pairs, each genuine (one person) or impostor (two), in folds.

    Attributes:
        images: ``(n, height, width, 3)`` uint8 RGB, memory-mapped where large; never written to.
        left: ``(n_pairs,)`` int64, the index of each pair's first image.
        right: ``(n_pairs,)`` int64, the index of its second image.
        same: ``(n_pairs,)`` bool, True for genuine pairs.
        fold: ``(n_pairs,)`` int64 from 0; a fold may be empty once pairs were dropped.
        people: The names shown left and right in each pair, or None when unknown. Who trained on
            named people drops them with :meth:`without` before evaluating.
    """

    images: NDArray[np.uint8]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    fold: NDArray[np.int64]
    people: tuple[tuple[str, str], ...] | None

    def __post_init__(self) -> None:
        """Checks shapes, types, index ranges, and that ``same`` agrees with ``people``."""
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                "images need shape (n, height, width, 3) and dtype uint8, "
                f"got {self.images.shape} {self.images.dtype}"
            )
        shape = (len(self.left),)
        for name, values, dtype in (
            ("left", self.left, np.int64),
            ("right", self.right, np.int64),
            ("same", self.same, np.bool_),
            ("fold", self.fold, np.int64),
        ):
            if values.shape != shape or values.dtype != dtype:
                raise ValueError(
                    f"{name} needs shape {shape} and dtype {np.dtype(dtype)}, "
                    f"got {values.shape} {values.dtype}"
                )
        for name, values in (("left", self.left), ("right", self.right)):
            if len(values) and not 0 <= values.min() <= values.max() < len(self.images):
                raise ValueError(
                    f"{name} needs indices in 0..{len(self.images) - 1}, "
                    f"got {values.min()}..{values.max()}"
                )
        if len(self) and self.fold.min() < 0:
            raise ValueError(f"fold needs values >= 0, got {self.fold.min()}")
        self._check_people()

    def _check_people(self) -> None:
        if self.people is None:
            return
        if len(self.people) != len(self):
            raise ValueError(f"people needs length {len(self)}, got {len(self.people)}")
        for number, ((a, b), same) in enumerate(zip(self.people, self.same, strict=True)):
            if (a == b) != same:
                raise ValueError(f"pair {number} needs same={a == b} for {a} and {b}, got {same}")

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.left)

    def without(self, names: Collection[str]) -> "Pairs":
        """Returns the pairs that show none of the people ``names``.

        The images stay as they are (shared, not copied), so some may no longer be in any pair;
        folds keep their numbers.

        Raises:
            ValueError: If the people are unknown (``people`` is None): nothing could be promised;
                or if no pair is left.
        """
        if self.people is None:
            raise ValueError(
                "without needs pairs that name the people they show, got people=None: "
                "identities that were trained on cannot be excluded"
            )
        excluded = frozenset(names)
        kept = np.array([not excluded & {a, b} for a, b in self.people], dtype=bool)
        if not kept.any():
            raise ValueError(
                f"without needs a pair that shows no excluded person, got {len(self)} pairs "
                f"that all show one of {len(excluded)} names"
            )
        return replace(
            self,
            left=self.left[kept],
            right=self.right[kept],
            same=self.same[kept],
            fold=self.fold[kept],
            people=tuple(pair for pair, keep in zip(self.people, kept, strict=True) if keep),
        )


def cached_pairs(key: Mapping[str, object], build: Callable[[], Pairs]) -> Pairs:
    """Returns the pairs that ``build`` makes, from disk when ``key`` was built before.

    As :func:`fedface.data.cache.cached_faces`, with the same errors.
    """
    return cached(key, build, _pack, _unpack)


def _pack(pairs: Pairs) -> Entry:
    names = ("images", "left", "right", "same", "fold")
    return Entry({name: getattr(pairs, name) for name in names}, {"people": pairs.people})


def _unpack(entry: Entry) -> Pairs:
    people = entry.notes["people"]
    return Pairs(
        images=entry.arrays["images"],
        left=np.array(entry.arrays["left"]),
        right=np.array(entry.arrays["right"]),
        same=np.array(entry.arrays["same"]),
        fold=np.array(entry.arrays["fold"]),
        people=None if people is None else tuple((a, b) for a, b in people),
    )
