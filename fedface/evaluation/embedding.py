"""Images to embeddings, the one way that every metric of fedface uses.

An embedding is the L2-normalised sum of what the backbone says of an image and of its mirror, as
InsightFace's LFW protocol does (https://github.com/deepinsight/insightface,
``recognition/arcface_torch/eval/verification.py``).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface.data.tensors import to_float
from fedface.modes import evaluating


def embed(
    backbone: nn.Module,
    images: NDArray[np.uint8],
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    transform: Callable[[Tensor], Tensor] | None = None,
    flip: bool = True,
) -> NDArray[np.float32]:
    """Returns the ``(n, embedding_dim)`` float32 embeddings of ``images``, each of length one.

    The backbone runs in eval mode without gradients; the mode of each of its modules is restored,
    also after an error.

    Args:
        backbone: ``(batch, 3, height, width)`` in [-1, 1] -> ``(batch, embedding_dim)``; it lies
            on ``device`` already.
        images: ``(n >= 1, height, width, 3)`` uint8 RGB.
        device: Where the backbone lies.
        batch_size: Images per step; with ``flip`` their mirrors come in a step of their own.
        transform: A trigger, float images -> float images. It is put on the image and, anew, on
            the mirrored image, so a patch lies at its own place in both: it is a thing that the
            attacker shows to the camera, and the mirror is made of the face under it.
        flip: Whether to add the embedding of the mirrored image.

    Raises:
        ValueError: If there is no image, ``batch_size`` is below 1, the backbone does not return
            ``(batch, embedding_dim)``, or an embedding is zero or not finite: it has no direction,
            so no score of it means anything.
    """
    if len(images) < 1 or batch_size < 1:
        raise ValueError(
            "embed needs n_images >= 1 and batch_size >= 1, "
            f"got n_images={len(images)}, batch_size={batch_size}"
        )
    raw: list[NDArray[np.float64]] = []
    with evaluating(backbone), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = to_float(images[start : start + batch_size]).to(device)
            total = _forward(backbone, batch, transform)
            if flip:
                total = total + _forward(backbone, batch.flip(3), transform)
            raw.append(total.cpu().numpy())
    return _normalised(np.concatenate(raw))


def _forward(
    backbone: nn.Module, batch: Tensor, transform: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The backbone's raw embeddings of ``batch`` under ``transform``, as float64."""
    output: Tensor = backbone(batch if transform is None else transform(batch))
    if output.ndim != 2 or len(output) != len(batch):
        raise ValueError(
            f"backbone needs to return shape ({len(batch)}, embedding_dim), "
            f"got {tuple(output.shape)}"
        )
    return output.double()


def _normalised(raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of length one; refuses rows without a direction."""
    norms = np.linalg.norm(raw, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad) > 0:
        raise ValueError(
            f"embeddings need a finite length above 0, got {norms[bad[0]]} "
            f"for image {bad[0]} ({len(bad)} of {len(raw)} images)"
        )
    unit: NDArray[np.float32] = (raw / norms[:, None]).astype(np.float32)
    return unit
