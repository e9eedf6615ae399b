"""CosFace: an additive cosine margin, Wang et al., CVPR 2018 (https://arxiv.org/abs/1801.09414)."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from fedface.config import Config
from fedface.heads.classes import class_weights
from fedface.heads.margin import MarginHead


def cosface_cosine(cosine: Tensor, margin: float) -> Tensor:
    """Returns psi(cos(theta)) = cos(theta) - m, equation 4 of the paper.

    Args:
        cosine: cos(theta), any shape.
        margin: m, a difference of cosines.
    """
    return cosine - margin


class CosFace(Config):
    """The additive cosine margin head.

    Attributes:
        scale: s, the factor on all cosines; 64 in the paper's experiments.
        margin: m, a difference of cosines; 0.35 in the paper. Its section 3.4 allows up to
            C / (C - 1) for C identities, which comes down to 1 as they grow many.
    """

    name: Literal["cosface"] = "cosface"
    scale: PositiveFloat = 64.0
    margin: Annotated[float, Field(ge=0, le=1)] = 0.35

    def build(self, embedding_size: int, n_identities: int, rng: torch.Generator) -> nn.Module:
        """Returns a new head for ``n_identities`` identities; ``rng`` fixes its weights.

        Raises:
            ValueError: If ``n_identities`` or ``embedding_size`` is below 1.
        """
        weight = class_weights(n_identities, embedding_size, rng)
        return MarginHead(weight, self.scale, partial(cosface_cosine, margin=self.margin))
