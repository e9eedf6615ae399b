"""Random changes of training views: each party changes its own, nobody has to agree on a draw."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from fedface.config import Config

Unit = Annotated[float, Field(ge=0, le=1)]


class Augmentation(Config):
    """How training views are changed; all off by default. Views are never changed for inference.

    Attributes:
        shift: Largest shift in pixels along both axes; edges are repeated.
        flip: Whether to mirror each view with probability one half. Not for halves of a face,
            whose mirror image is no view that occurs.
        brightness: Largest addition to all pixels, in units of [-1, 1].
        contrast: Largest relative change of the distance from the view's mean.
    """

    shift: NonNegativeInt = 0
    flip: bool = False
    brightness: Unit = 0.0
    contrast: Unit = 0.0

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Returns changed ``(n, 3, h, w)`` views in [-1, 1]; ``images`` stay as they are.

        Attributes, ``(n, k)``, come back unchanged: none of the changes is one of theirs.

        Args:
            images: Views in [-1, 1].
            rng: A CPU generator; a draw of each kind is made whether or not it is used, so that
                turning one off leaves the others as they were.

        Raises:
            ValueError: If a view is not larger than the shift.
        """
        if images.ndim == 2:
            return images
        n = len(images)
        across, down = torch.randint(-self.shift, self.shift + 1, (2, n), generator=rng)
        mirrored = torch.rand(n, generator=rng) < 0.5
        added, scaled = 2 * torch.rand(2, n, 1, 1, 1, generator=rng) - 1
        if self.shift:
            images = _shifted(images, down.to(images.device), across.to(images.device), self.shift)
        if self.flip:
            images = torch.where(
                mirrored[:, None, None, None].to(images.device), images.flip(3), images
            )
        if self.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            images = mean + (images - mean) * (1 + self.contrast * scaled.to(images.device))
        if self.brightness:
            images = images + self.brightness * added.to(images.device)
        changed = self.contrast or self.brightness
        return images.clamp(-1, 1) if changed else images


def _shifted(images: Tensor, down: Tensor, across: Tensor, most: int) -> Tensor:
    """Each image moved by its own whole number of pixels."""
    n, _, height, width = images.shape
    if min(height, width) <= most:
        raise ValueError(f"shift={most} needs views larger than it, got {height} x {width}")
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    rows = torch.arange(height, device=images.device) + (most - down)[:, None]
    columns = torch.arange(width, device=images.device) + (most - across)[:, None]
    number = torch.arange(n, device=images.device)
    moved: Tensor = padded[number[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
