"""Backbones: images to embeddings, one network per module.

Each is a frozen config with ``build(image_size, rng) -> nn.Module``; the module maps
``(batch, 3, image_size, image_size)`` images in [-1, 1] to ``(batch, embedding_size)`` float32
embeddings that are not of unit length, also under bfloat16 autocast.
"""

from typing import Annotated

from pydantic import Field

from fedface.backbones.iresnet import IResNet
from fedface.backbones.mobilefacenet import MobileFaceNet
from fedface.backbones.small_conv import SmallConv

AnyBackbone = Annotated[IResNet | MobileFaceNet | SmallConv, Field(discriminator="name")]
"""Every backbone a YAML file can name. Adding one is adding its class to this line."""

__all__ = ["AnyBackbone", "IResNet", "MobileFaceNet", "SmallConv"]
