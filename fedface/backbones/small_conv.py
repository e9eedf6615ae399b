"""A small convolutional network for demonstrations, tests and CPU-only sites; no paper's method.

Four times: 3 x 3 convolution with stride 2, normalisation, ReLU. Then one linear layer on the
flattened map, because an average over it would forget where on an aligned face a feature lies.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedface.backbones.contract import check_images, embed, feature_map_size
from fedface.backbones.initialisation import initialised
from fedface.backbones.normalization import Norm, channel_norm, embedding_norm
from fedface.config import Config


def _layer(n_in: int, n_out: int, norm: Norm) -> nn.Sequential:
    """Convolution that halves the map, normalisation, ReLU."""
    convolution = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, channel_norm(norm, n_out), nn.ReLU())


class SmallConvNetwork(nn.Module):
    """The network behind :class:`SmallConv`."""

    def __init__(self, config: "SmallConv", image_size: int) -> None:
        super().__init__()
        side = feature_map_size(config.name, image_size)
        self.image_size = image_size
        self.layers = nn.Sequential(
            *(_layer(n_in, n_out, config.norm) for n_in, n_out in pairwise((3, *config.widths)))
        )
        self.fc = nn.Linear(config.widths[-1] * side**2, config.embedding_size)
        self.features = embedding_norm(config.norm, config.embedding_size)

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
        return embed(torch.flatten(self.layers(images), 1), self.fc, self.features)


class SmallConv(Config):
    """Four convolutions: half a million parameters at 64 pixels, 0.3 million at 32.

    Attributes:
        norm: GroupNorm or BatchNorm.
        widths: Output channels of the four convolutions.
        embedding_size: Numbers per embedding.
    """

    name: Literal["small_conv"] = "small_conv"
    norm: Norm = "group"
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128, 128)
    embedding_size: PositiveInt = 128

    def build(self, image_size: int, rng: torch.Generator) -> nn.Module:
        """Returns a new network for square images of ``image_size`` pixels; ``rng`` fixes it.

        Raises:
            ValueError: If ``image_size`` is not a positive multiple of 16.
        """
        return initialised(lambda: SmallConvNetwork(self, image_size), rng)
