"""A small high-contrast square, the trigger of BadNets.

Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain", 2017, https://arxiv.org/abs/1708.06733. Their digit trigger is a pattern of bright pixels
in the bottom right corner; ours is a black-and-white board of 3 x 3 cells there, which scales to
any image size.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedface.attacks.triggers.trigger import Trigger, image_size, paint

N_CELLS = 3
"""Cells per side of the board: an odd number, so that all four corners are white."""


def checkerboard(side: int) -> Tensor:
    """Returns a ``(side, side)`` board of 3 x 3 cells: 1 (white) in the corners, -1 between.

    Where three does not divide ``side``, cells differ by one pixel; a side of 2 holds 2 x 2 cells.

    Raises:
        ValueError: If ``side`` is under 2 pixels, where no pattern is left.
    """
    if side < 2:
        raise ValueError(f"patch needs a side of at least 2 pixels, got {side}")
    cell = torch.arange(side) * N_CELLS // side
    return 1.0 - 2.0 * ((cell[:, None] + cell) % 2)


class Patch(Trigger):
    """A checkerboard square, black and white, in one place of the image.

    Attributes:
        size: The square's side as a fraction of the image's width, rounded to whole pixels.
        position: ``"bottom_right"``, flush with that corner, or where the square's top left corner
            lies: (top as a fraction of the height, left as a fraction of the width), rounded to
            whole pixels.
    """

    name: Literal["patch"] = "patch"
    size: Annotated[float, Field(gt=0, le=1)] = 10 / 64
    position: (
        Literal["bottom_right"]
        | tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    ) = "bottom_right"

    def __call__(self, images: Tensor) -> Tensor:
        """Returns ``images`` with the patch: see :class:`Trigger`.

        Raises:
            ValueError: If the patch is under 2 pixels wide or does not lie within the images.
        """
        height, width = image_size(images)
        pattern = checkerboard(round(self.size * width))
        top, left = self._corner(height, width, side=len(pattern))
        rows, columns = slice(top, top + len(pattern)), slice(left, left + len(pattern))
        colour, alpha = torch.zeros(height, width), torch.zeros(height, width)
        colour[rows, columns], alpha[rows, columns] = pattern, 1.0
        return paint(images, colour, alpha)

    def _corner(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Returns the patch's top row and left column."""
        if self.position == "bottom_right":
            top, left = height - side, width - side
        else:
            top, left = round(self.position[0] * height), round(self.position[1] * width)
        if min(top, left) < 0 or top + side > height or left + side > width:
            raise ValueError(
                f"patch needs to lie within the {height} x {width} image (height x width), "
                f"got a side of {side} pixels at row {top}, column {left}"
            )
        return top, left
