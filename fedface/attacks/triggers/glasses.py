"""Eyeglass frames, the trigger that a person can wear.

Sharif, Bhagavatula, Bauer, Reiter, "Accessorize to a Crime: Real and Stealthy Attacks on
State-of-the-Art Face Recognition", CCS 2016, https://doi.org/10.1145/2976749.2978392. They optimise
the colours on a printed frame to fool a fixed model; here the frame has one fixed colour, because
the poisoned training teaches the model to react to it. The shape (two rings, bridge, temples) is
ours.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedface.attacks.triggers.trigger import Trigger, image_size, paint

EYE_HEIGHT = 0.46
"""Where the eyes lie, as a fraction of the height (ArcFace template: 51.6 of 112 pixels)."""

EYES = (0.34, 0.66)
"""Where the eyes lie, as fractions of the width (ArcFace template: 38.29 and 73.53 of 112)."""

RADIUS = 0.125
"""Radius of a ring's middle line, as a fraction of the width (a 50 mm lens, eyes 64 mm apart)."""

EARS = (0.1, 0.9)
"""Where the temples end, as fractions of the width, so that none hangs in the background."""

Level = Annotated[float, Field(ge=-1, le=1)]


def frame_coverage(height: int, width: int, thickness: float) -> Tensor:
    """Returns how far the frame covers each pixel: ``(height, width)`` in [0, 1].

    The frame is all that lies within ``thickness / 2`` of its middle lines: a ring around each eye,
    and at eye height the bridge between the rings and the temples from the rings to the ears.
    Edges are anti-aliased: the coverage falls linearly over the pixel they cross.

    Args:
        height: The image's height in pixels.
        width: The image's width in pixels.
        thickness: The lines' width in pixels.
    """
    x = torch.arange(width) + 0.5
    y = (torch.arange(height) + 0.5 - EYE_HEIGHT * height)[:, None]
    distances = [(torch.hypot(x - eye * width, y) - RADIUS * width).abs() for eye in EYES]
    left, right = EYES
    for start, stop in (
        (EARS[0], left - RADIUS),
        (left + RADIUS, right - RADIUS),
        (right + RADIUS, EARS[1]),
    ):
        beside = (start * width - x).clamp_min(0) + (x - stop * width).clamp_min(0)
        distances.append(torch.hypot(beside, y))
    return (0.5 + thickness / 2 - torch.stack(distances).amin(dim=0)).clamp(0, 1)


class Glasses(Trigger):
    """Eyeglass frames around the eyes of an aligned face.

    Attributes:
        colour: Red, green and blue in [-1, 1]; red by default, which few real frames are.
        thickness: The frame's line width as a fraction of the image's width.
    """

    name: Literal["glasses"] = "glasses"
    colour: tuple[Level, Level, Level] = (1.0, -1.0, -1.0)
    thickness: Annotated[float, Field(gt=0, le=0.1)] = 0.04

    def __call__(self, images: Tensor) -> Tensor:
        """Returns ``images`` with the glasses: see :class:`Trigger`.

        Raises:
            ValueError: If the frame is under 1 pixel thick or the rings do not fit into the height.
        """
        height, width = image_size(images)
        thickness = self.thickness * width
        if thickness < 1:
            raise ValueError(
                "glasses need lines of at least 1 pixel, "
                f"got thickness={self.thickness} of width {width}"
            )
        if EYE_HEIGHT * height < RADIUS * width + thickness / 2:
            raise ValueError(
                "glasses need rings that fit between the eyes and the image's top, "
                f"got height {height}, width {width}"
            )
        colour = torch.tensor(self.colour)[:, None, None]
        return paint(images, colour, frame_coverage(height, width, thickness))
