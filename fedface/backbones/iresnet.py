"""IResNet, the ResNet of face recognition, as in ArcFace and InsightFace.

Deng et al., ArcFace, CVPR 2019 (https://arxiv.org/abs/1801.07698), section 3.1, after Han et al.,
CVPR 2017, and Duta et al., ICPR 2020. Structure and names follow InsightFace's
recognition/arcface_torch/backbones/iresnet.py, so that with ``norm: batch`` and 112 x 112 pixels
its published weights load by name (their ``num_batches_tracked`` included). We differ in four
places: GroupNorm by default (see :mod:`fedface.backbones.normalization`), other image sizes,
nothing is modified in place, and the options which InsightFace leaves unused are absent.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fedface.backbones.contract import check_images, embed, feature_map_size
from fedface.backbones.initialisation import initialised
from fedface.backbones.normalization import Norm, channel_norm, embedding_norm
from fedface.config import Config

IResNetName = Literal["iresnet18", "iresnet34", "iresnet50", "iresnet100"]
"""The published depths."""

N_BLOCKS: dict[IResNetName, tuple[int, int, int, int]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""Residual blocks in each of the four stages."""


def _convolution(n_in: int, n_out: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, drawn from N(0, 0.1^2) as InsightFace does."""
    layer = nn.Conv2d(n_in, n_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.normal_(layer.weight, std=0.1)
    return layer


class ResidualBlock(nn.Module):
    """norm, conv, norm, PReLU, conv, norm; added to the input (projected where shapes differ)."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.bn1 = channel_norm(norm, n_in)
        self.conv1 = _convolution(n_in, n_out, 3)
        self.bn2 = channel_norm(norm, n_out)
        self.prelu = nn.PReLU(n_out)
        self.conv2 = _convolution(n_out, n_out, 3, stride)
        self.bn3 = channel_norm(norm, n_out)
        self.downsample = (
            nn.Identity()
            if stride == 1 and n_in == n_out
            else nn.Sequential(_convolution(n_in, n_out, 1, stride), channel_norm(norm, n_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, n_in, h, w)`` to ``(batch, n_out, h / stride, w / stride)``."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        block: Tensor = out + self.downsample(x)
        return block


def _stage(n_in: int, n_out: int, n_blocks: int, norm: Norm) -> nn.Sequential:
    """``n_blocks`` residual blocks, of which the first halves height and width."""
    first = ResidualBlock(n_in, n_out, 2, norm)
    rest = (ResidualBlock(n_out, n_out, 1, norm) for _ in range(n_blocks - 1))
    return nn.Sequential(first, *rest)


class IResNetNetwork(nn.Module):
    """The network behind :class:`IResNet`, with InsightFace's parameter names."""

    def __init__(self, config: "IResNet", image_size: int) -> None:
        super().__init__()
        side = feature_map_size(config.name, image_size)
        n_blocks, norm = N_BLOCKS[config.name], config.norm
        self.image_size = image_size
        self.conv1 = _convolution(3, 64, 3)
        self.bn1 = channel_norm(norm, 64)
        self.prelu = nn.PReLU(64)
        self.layer1 = _stage(64, 64, n_blocks[0], norm)
        self.layer2 = _stage(64, 128, n_blocks[1], norm)
        self.layer3 = _stage(128, 256, n_blocks[2], norm)
        self.layer4 = _stage(256, 512, n_blocks[3], norm)
        self.bn2 = channel_norm(norm, 512)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(512 * side**2, config.embedding_size)
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
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        return embed(x, self.fc, self.features)


class IResNet(Config):
    """IResNet of 18, 34, 50 or 100 layers; InsightFace's is 112 x 112 pixels to 512 numbers.

    Attributes:
        name: The depth.
        norm: GroupNorm, or BatchNorm for the published weights.
        embedding_size: Numbers per embedding.
        dropout: Probability that a feature is dropped before the last layer while training; above
            0, training draws from torch's own generator. 0 is InsightFace's default.
    """

    name: IResNetName
    norm: Norm = "group"
    embedding_size: PositiveInt = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self, image_size: int, rng: torch.Generator) -> nn.Module:
        """Returns a new network for square images of ``image_size`` pixels; ``rng`` fixes it.

        Raises:
            ValueError: If ``image_size`` is not a positive multiple of 16.
        """
        return initialised(lambda: IResNetNetwork(self, image_size), rng)
