"""Normalisation layers: GroupNorm by default, BatchNorm for published weights.

GroupNorm (Wu and He, ECCV 2018, https://arxiv.org/abs/1803.08494) treats each image alone. In a
federation that means: no running statistics to average or to leak, no mixing of images within a
batch (which DP-SGD forbids), and the same function in training and in use. BatchNorm is what
InsightFace's published weights need.
"""

from typing import Literal

from torch import nn

Norm = Literal["group", "batch"]
"""Which normalisation a backbone uses."""

MAX_GROUPS = 32


def n_groups(n_channels: int) -> int:
    """Returns how many groups GroupNorm makes of ``n_channels`` channels.

    The largest divisor of ``n_channels`` that is at most 32 (the paper's default) and leaves at
    least two channels per group; one group where there is no such divisor. A group of a single
    channel would be instance norm, which is constant on a 1 x 1 feature map.
    """
    limit = max(1, min(MAX_GROUPS, n_channels // 2))
    return max(g for g in range(1, limit + 1) if n_channels % g == 0)


def channel_norm(norm: Norm, n_channels: int) -> nn.Module:
    """Returns the layer that normalises ``(batch, n_channels, height, width)`` feature maps.

    Scale 1, shift 0 and epsilon 1e-5 at the start. With ``batch``, training needs more than one
    value per channel.
    """
    if norm == "batch":
        return nn.BatchNorm2d(n_channels)
    return nn.GroupNorm(n_groups(n_channels), n_channels)


def embedding_norm(norm: Norm, embedding_size: int) -> nn.Module:
    """Returns the layer that follows the last linear layer, on ``(batch, embedding_size)``.

    ``batch``: InsightFace's ``features`` layer, a BatchNorm1d whose scale is fixed at 1; training
    then needs batches of two or more.

    ``group``: nothing, on purpose. BatchNorm1d works across images and has no counterpart within
    one: a LayerNorm would give all embeddings the same length and so erase their norm, which tells
    image quality (Kim et al., AdaFace, CVPR 2022). BatchNorm's shift is not lost: every backbone's
    last linear layer has a bias when ``norm`` is ``group``.
    """
    if norm == "group":
        return nn.Identity()
    layer = nn.BatchNorm1d(embedding_size)
    layer.weight.requires_grad_(False)
    return layer
