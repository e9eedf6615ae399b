"""MobileFaceNet, Chen et al., CCBR 2018 (https://arxiv.org/abs/1804.07573).

The layers of the paper's Table 1 with PReLU and normalisation. We differ in three places: the
global depthwise convolution (GDConv) is as large as the last feature map (7 x 7 at the paper's 112
pixels), the normalisation is GroupNorm by default, and with ``norm: batch`` the last BatchNorm has
a fixed scale, as in InsightFace's IResNet. The paper gives no initialisation; convolutions take He
et al.'s (fan out), as in InsightFace's version, which is four times as large and another network.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedface.backbones.contract import check_images, embed, feature_map_size
from fedface.backbones.initialisation import initialised
from fedface.backbones.normalization import Norm, channel_norm, embedding_norm
from fedface.config import Config

BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Table 1: expansion t, channels c, repeats n, and stride s of the first repeat."""


def _convolution(
    n_in: int,
    n_out: int,
    kernel_size: int,
    norm: Norm,
    *,
    stride: int = 1,
    padding: int = 0,
    depthwise: bool = False,
    linear: bool = False,
) -> nn.Sequential:
    """Convolution, normalisation and, unless ``linear``, PReLU."""
    groups = n_in if depthwise else 1
    layer = nn.Conv2d(n_in, n_out, kernel_size, stride, padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    layers: list[nn.Module] = [layer, channel_norm(norm, n_out)]
    return nn.Sequential(*layers, *([] if linear else [nn.PReLU(n_out)]))


class Bottleneck(nn.Module):
    """Expand, filter each channel, project without activation; added to the input where it fits."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int, norm: Norm) -> None:
        super().__init__()
        n_inner = n_in * expansion
        self.is_residual = stride == 1 and n_in == n_out
        self.expand = _convolution(n_in, n_inner, 1, norm)
        self.depthwise = _convolution(
            n_inner, n_inner, 3, norm, stride=stride, padding=1, depthwise=True
        )
        self.project = _convolution(n_inner, n_out, 1, norm, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, n_in, h, w)`` to ``(batch, n_out, h / stride, w / stride)``."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.is_residual else out


def _bottlenecks(norm: Norm) -> nn.Sequential:
    """The bottlenecks of Table 1, from 64 to 128 channels."""
    blocks, n_in = [], 64
    for expansion, n_out, n_repeats, first_stride in BOTTLENECKS:
        for repeat in range(n_repeats):
            stride = first_stride if repeat == 0 else 1
            blocks.append(Bottleneck(n_in, n_out, expansion, stride, norm))
            n_in = n_out
    return nn.Sequential(*blocks)


class MobileFaceNetNetwork(nn.Module):
    """The network behind :class:`MobileFaceNet`."""

    def __init__(self, config: "MobileFaceNet", image_size: int) -> None:
        super().__init__()
        norm = config.norm
        side = feature_map_size(config.name, image_size)
        self.image_size = image_size
        self.conv1 = _convolution(3, 64, 3, norm, stride=2, padding=1)
        self.depthwise1 = _convolution(64, 64, 3, norm, padding=1, depthwise=True)
        self.bottlenecks = _bottlenecks(norm)
        self.conv2 = _convolution(128, 512, 1, norm)
        self.gdconv = _convolution(512, 512, side, norm, depthwise=True, linear=True)
        self.fc = nn.Linear(512, config.embedding_size, bias=norm == "group")
        self.features = embedding_norm(norm, config.embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to embeddings that are not of unit length.

        Args:
            images: ``(batch, 3, image_size, image_size)`` RGB in [-1, 1].

        Returns:
            ``(batch, embedding_size)`` float32.

        Raises:
            ValueError: If the images have another shape.
        """
        check_images(images, self.image_size)
        x = self.bottlenecks(self.depthwise1(self.conv1(images)))
        x = torch.flatten(self.gdconv(self.conv2(x)), 1)
        return embed(x, self.fc, self.features)


class MobileFaceNet(Config):
    """The paper's network of about one million parameters; 112 x 112 pixels to 128 numbers.

    Attributes:
        norm: GroupNorm, or the paper's BatchNorm.
        embedding_size: Numbers per embedding; 128 in Table 1.
    """

    name: Literal["mobilefacenet"] = "mobilefacenet"
    norm: Norm = "group"
    embedding_size: PositiveInt = 128

    def build(self, image_size: int, rng: torch.Generator) -> nn.Module:
        """Returns a new network for square images of ``image_size`` pixels; ``rng`` fixes it.

        Raises:
            ValueError: If ``image_size`` is not a positive multiple of 16.
        """
        return initialised(lambda: MobileFaceNetNetwork(self, image_size), rng)
