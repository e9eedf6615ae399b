"""From stored uint8 images to the float tensors that a backbone reads."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_float(images: NDArray[np.uint8]) -> Tensor:
    """Returns ``images`` as a new ``(n, 3, height, width)`` float32 tensor in [-1, 1].

    The normalisation is ArcFace's, (x / 255 - 0.5) / 0.5: black becomes -1 and white 1.

    Args:
        images: ``(n, height, width, 3)`` uint8 RGB; memory-mapped arrays are copied, not written.

    Raises:
        ValueError: If ``images`` has another shape or type.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            "images need shape (n, height, width, 3) and dtype uint8, "
            f"got {images.shape} {images.dtype}"
        )
    channels_first = np.array(images.transpose(0, 3, 1, 2), order="C")
    return torch.from_numpy(channels_first).to(torch.float32).div_(255).sub_(0.5).div_(0.5)
