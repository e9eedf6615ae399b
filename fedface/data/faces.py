"""Faces: the one type that every dataset loads into."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Skip:
    """One input that was left out, by name, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Faces:
    """Face images and whom they show.

    Attributes:
        images: ``(n, height, width, 3)`` uint8 RGB, memory-mapped where large; never written to.
            Aligned: the eyes lie near the ArcFace template (0.46 of the height; 0.34 and 0.66 of
            the width).
        identities: ``(n,)`` int64, an index into ``names`` for each image.
        names: The name of each identity; every identity has at least one image.
        skipped: What the loader left out, and why.
    """

    images: NDArray[np.uint8]
    identities: NDArray[np.int64]
    names: tuple[str, ...]
    skipped: tuple[Skip, ...] = field(default=())

    def __post_init__(self) -> None:
        """Checks shapes, types and that every identity has images."""
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                "images need shape (n, height, width, 3) and dtype uint8, "
                f"got {self.images.shape} {self.images.dtype}"
            )
        if self.identities.shape != self.images.shape[:1] or self.identities.dtype != np.int64:
            raise ValueError(
                f"identities need shape {self.images.shape[:1]} and dtype int64, "
                f"got {self.identities.shape} {self.identities.dtype}"
            )
        present = np.unique(self.identities)
        if not np.array_equal(present, np.arange(len(self.names))):
            raise ValueError(
                f"identities need to be 0..{len(self.names) - 1}, each with an image, "
                f"got {len(present)} distinct values"
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    @property
    def n_identities(self) -> int:
        """The number of people."""
        return len(self.names)

    def select(self, indices: NDArray[np.int64]) -> "Faces":
        """Returns the images at ``indices`` as Faces of their own, identities renumbered."""
        kept, identities = np.unique(self.identities[indices], return_inverse=True)
        return Faces(
            images=self.images[indices],
            identities=identities.astype(np.int64),
            names=tuple(self.names[i] for i in kept),
        )
