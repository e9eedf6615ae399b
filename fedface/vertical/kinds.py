"""Views of different kinds: each record is several pictures, one for each party.

For sets that hold a photo and a sketch of each person, or pictures of two sensors, in turn
(:class:`fedface.data.cuhk.CuhkFaces`): nothing is cut, pictures of one kind are gathered.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from fedface.config import Config
from fedface.vertical.views import LeftRight, Quadrants, TopBottom, stretched

Images = NDArray[np.uint8]


class Kinds(Config):
    """Picture r K + k of the set is the view k of record r, for K kinds.

    Attributes:
        kinds: The names of the views, in the order of the pictures; two or more.
        size: Height and width in pixels that pictures are stretched to, or None to keep their own.
    """

    name: Literal["kinds"] = "kinds"
    kinds: Annotated[tuple[str, ...], Field(min_length=2)] = ("photo", "sketch")
    size: PositiveInt | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> "Kinds":
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds need to differ, got {self.kinds}")
        return self

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views, in order."""
        return self.kinds

    def cut(self, images: Images) -> tuple[Images, ...]:
        """Returns for each kind its ``(n / K, h', w', 3)`` pictures, of ``(n, h, w, 3)`` uint8.

        Raises:
            ValueError: If the images have another shape or type, or n is no multiple of K.
        """
        k = len(self.kinds)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                "images need shape (n, height, width, 3) and dtype uint8, "
                f"got {images.shape} {images.dtype}"
            )
        if len(images) % k:
            raise ValueError(f"kinds {self.kinds} need a multiple of {k} images, got {len(images)}")
        return tuple(stretched(images[number::k], self.size) for number in range(k))


AnyRecordViews = Annotated[LeftRight | TopBottom | Quadrants | Kinds, Field(discriminator="name")]
"""Every way to see records from several sides that a YAML file can name."""


def record_identities(views: AnyRecordViews, identities: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns whom each record shows, ``(n_records,)``, of whom each picture shows ``(n,)``.

    Raises:
        ValueError: If the pictures of one record show different people.
    """
    if not isinstance(views, Kinds):
        return identities
    k = len(views.kinds)
    rows = identities[: len(identities) // k * k].reshape(-1, k)
    wrong = np.flatnonzero((rows != rows[:, :1]).any(1))
    if len(rows) * k != len(identities) or len(wrong):
        raise ValueError(
            f"views {views.name} need {k} pictures of one person in turn, got {len(identities)} "
            f"pictures, {len(wrong)} records show several people"
        )
    return rows[:, 0].copy()
