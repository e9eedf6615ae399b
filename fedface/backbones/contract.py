"""What every backbone does at its two ends: refuse images of another size, embed in float32."""

import torch
from torch import Tensor, nn

STRIDE = 16
"""Every backbone halves its input four times: one feature-map cell per 16 x 16 pixels."""


def feature_map_size(name: str, image_size: int) -> int:
    """Returns the side of the last feature map, ``image_size / 16``.

    Args:
        name: The backbone's name, for the message.
        image_size: The side of the square input images, in pixels.

    Raises:
        ValueError: If ``image_size`` is not a positive multiple of 16.
    """
    if image_size < STRIDE or image_size % STRIDE:
        raise ValueError(
            f"{name} needs image_size to be a positive multiple of {STRIDE}, got {image_size=}"
        )
    return image_size // STRIDE


def check_images(images: Tensor, image_size: int) -> None:
    """Refuses images that the backbone was not built for.

    Raises:
        ValueError: If ``images`` is not ``(batch, 3, image_size, image_size)``.
    """
    if images.ndim != 4 or images.shape[1:] != (3, image_size, image_size):
        raise ValueError(
            f"images need shape (batch, 3, {image_size}, {image_size}), got {tuple(images.shape)}"
        )


def embed(features: Tensor, fc: nn.Linear, normalization: nn.Module) -> Tensor:
    """Returns ``normalization(fc(features))`` in the precision of fc's weights, never in autocast.

    The last layer stays in float32 under mixed precision, as in InsightFace: its outputs are
    compared as cosines, where bfloat16 keeps only three digits.

    Args:
        features: ``(batch, n_features)``, of any floating type.
        fc: Maps n_features to embedding_size.
        normalization: Acts on ``(batch, embedding_size)``.

    Returns:
        ``(batch, embedding_size)`` embeddings, not of unit length.
    """
    with torch.autocast(features.device.type, enabled=False):
        embeddings: Tensor = normalization(fc(features.to(fc.weight.dtype)))
    return embeddings
