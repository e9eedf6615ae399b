"""ArcFace: an additive angular margin, Deng et al., CVPR 2019 (https://arxiv.org/abs/1801.07698)."""

import math
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from fedface.config import Config
from fedface.heads.classes import class_weights
from fedface.heads.margin import MarginHead


def arcface_cosine(cosine: Tensor, margin: float) -> Tensor:
    """Returns psi(cos(theta)): cos(theta + m), continued beyond theta = pi - m.

    Equation 3 of the paper. There cos(theta + m) would rise again, so that moving away from the own
    identity would be rewarded; as in the authors' code (``easy_margin`` off) psi is then
    cos(theta) - m sin(m). For m <= pi/2 psi falls strictly in theta, over a small downward jump at
    pi - m (from -1 to -1.117 for m = 0.5).

    cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m) needs no arc cosine. Its slope in
    cos(theta) is infinite at theta = 0 and pi; there sin(theta) counts as constant, which makes the
    gradient finite, and zero in the embedding. (The authors' code and pytorch-metric-learning give
    infinities or NaN.) Values are exact everywhere.

    Args:
        cosine: cos(theta), any shape; rounding may carry it beyond [-1, 1].
        margin: m in radians, in [0, pi/2].
    """
    squared_sine = (1 - cosine) * (1 + cosine)
    sine = squared_sine.clamp(min=torch.finfo(cosine.dtype).tiny).sqrt()
    inside = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine >= -math.cos(margin), inside, beyond)


class ArcFace(Config):
    """The additive angular margin head.

    Attributes:
        scale: s, the factor on all cosines; 64 in the paper.
        margin: m in radians; 0.5 in the paper. Above pi/2 the continuation would not be monotone.
    """

    name: Literal["arcface"] = "arcface"
    scale: PositiveFloat = 64.0
    margin: Annotated[float, Field(ge=0, le=math.pi / 2)] = 0.5

    def build(self, embedding_size: int, n_identities: int, rng: torch.Generator) -> nn.Module:
        """Returns a new head for ``n_identities`` identities; ``rng`` fixes its weights.

        Raises:
            ValueError: If ``n_identities`` or ``embedding_size`` is below 1.
        """
        weight = class_weights(n_identities, embedding_size, rng)
        return MarginHead(weight, self.scale, partial(arcface_cosine, margin=self.margin))
