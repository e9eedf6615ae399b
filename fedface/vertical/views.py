"""Cuts face images into views: what each party of a vertical federation sees of the same people.

Views stand for sensors or sites that hold different parts of one record. Each is a frozen config
with ``cut(images) -> tuple of images``, one entry per party, image by image and without a draw, so
whole sets and single batches can be cut alike.
"""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from fedface.config import Config
from fedface.data.tensors import to_float

Images = NDArray[np.uint8]


class LeftRight(Config):
    """The left and the right half of the picture; of an odd width the middle column is left out.

    Attributes:
        size: Height and width in pixels that each view is stretched to (backbones need squares of
            a multiple of 16), or None to keep its own.
    """

    name: Literal["left_right"] = "left_right"
    size: PositiveInt | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views, in order."""
        return ("left", "right")

    def cut(self, images: Images) -> tuple[Images, ...]:
        """Returns both halves of ``(n, h, w, 3)`` uint8 ``images``, each ``(n, h', w', 3)``.

        Raises:
            ValueError: If the images have another shape or type, or are less than 2 pixels wide.
        """
        half = _check(images).shape[2] // 2
        return tuple(stretched(v, self.size) for v in (images[:, :, :half], images[:, :, -half:]))


class TopBottom(Config):
    """The upper and the lower half; of an odd height the middle row is left out.

    Attributes:
        size: As for :class:`LeftRight`.
    """

    name: Literal["top_bottom"] = "top_bottom"
    size: PositiveInt | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views, in order."""
        return ("top", "bottom")

    def cut(self, images: Images) -> tuple[Images, ...]:
        """Returns both halves; as :meth:`LeftRight.cut`."""
        half = _check(images).shape[1] // 2
        return tuple(stretched(v, self.size) for v in (images[:, :half], images[:, -half:]))


class Quadrants(Config):
    """The four quarters: top left, top right, bottom left, bottom right.

    Attributes:
        size: As for :class:`LeftRight`.
    """

    name: Literal["quadrants"] = "quadrants"
    size: PositiveInt | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views, in order."""
        return ("top_left", "top_right", "bottom_left", "bottom_right")

    def cut(self, images: Images) -> tuple[Images, ...]:
        """Returns the quarters; as :meth:`LeftRight.cut`."""
        rows = TopBottom().cut(images)
        quarters = [quarter for row in rows for quarter in LeftRight().cut(row)]
        return tuple(stretched(v, self.size) for v in quarters)


AnyViews = Annotated[LeftRight | TopBottom | Quadrants, Field(discriminator="name")]
"""Every way to cut that a YAML file can name. Adding one is adding its class to this line."""


def _check(images: Images) -> Images:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            "images need shape (n, height, width, 3) and dtype uint8, "
            f"got {images.shape} {images.dtype}"
        )
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"views need images of 2 x 2 pixels or more, got {images.shape[1:3]}")
    return images


def features(view: NDArray[Any]) -> Tensor:
    """Returns what a bottom model reads of a view: pictures in [-1, 1], or attributes as they are.

    Args:
        view: ``(n, h, w, 3)`` uint8 pictures, or ``(n, k)`` float32 attributes.

    Raises:
        ValueError: If it is neither, or an attribute is not finite.
    """
    if view.ndim != 2:
        return to_float(view)
    if view.dtype != np.float32 or not np.isfinite(view).all():
        raise ValueError(f"attributes need finite float32 values, got others ({view.dtype})")
    return torch.from_numpy(np.array(view))


def stretched(view: Images, size: int | None) -> Images:
    """Returns a copy of ``view``, resampled to ``(n, size, size, 3)``: bicubic, antialiased."""
    if size is None or view.shape[1:3] == (size, size):
        return np.array(view)
    return np.array(
        [
            np.asarray(Image.fromarray(v).resize((size, size), Image.Resampling.BICUBIC))
            for v in view
        ],
        dtype=np.uint8,
    ).reshape(len(view), size, size, 3)
