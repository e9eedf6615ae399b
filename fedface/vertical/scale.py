"""Adaptive scale: what a passive party does to its embeddings before the noise, inside the ball.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available ("adaptive adjustments on
the scale ... of embeddings" that do not touch the mechanism); the options here are our
reconstruction, and which of them the authors use is not known.

Each is a frozen config with ``build(dim, bound) -> nn.Module``, a map h -> u of ``(batch, dim)``
embeddings with ||u|| <= bound for every row: sigma depends on the bound alone, so none of them can
change the guarantee. No row of u depends on another row of the same batch: a record never shows in
its neighbours' embeddings within one release.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from fedface.config import Config
from fedface.privacy.clipping import check_rows, clip


class PlainClip(nn.Module):
    """h min(1, C / ||h||)."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, h: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` rows of length at most C; refuses rows that are not finite."""
        return clip(h, self.bound)


class SphereScale(nn.Module):
    """C h / ||h||; a zero row has no direction and stays zero."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, h: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` rows of length C, or zero; refuses rows that are not finite."""
        check_rows(h)
        largest = h.detach().abs().amax(1, keepdim=True).double()
        wide = h.double() / torch.where(largest > 0, largest, 1.0)
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp(min=0.5)
        return _rescaled(wide / length, torch.tensor(self.bound), self.bound, like=h)


class QuantileScale(nn.Module):
    """clip_C(s h) with s = C / (moving average of the q-quantile of the batches' lengths).

    s is a constant for the gradient and comes from earlier batches only (1 for the first one), so
    that a record does not rescale the others of its batch. It stays at the passive party.

    Attributes:
        level: The moving average, a float64 buffer; saved with the party's state, never sent.
        n_batches: Batches that entered it.
    """

    level: Tensor
    n_batches: Tensor

    def __init__(self, bound: float, quantile: float, momentum: float) -> None:
        super().__init__()
        self.bound = bound
        self.quantile = quantile
        self.momentum = momentum
        self.register_buffer("level", torch.tensor(bound, dtype=torch.float64))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` rows of length at most C; in training mode it learns s."""
        check_rows(h)
        u = _rescaled(h, self.bound / self.level.clamp(min=1e-30), self.bound)
        if self.training and len(h):
            self._learn(torch.linalg.vector_norm(h.detach().double().clamp(-1e30, 1e30), dim=1))
        return u

    @torch.no_grad()
    def _learn(self, lengths: Tensor) -> None:
        found = torch.quantile(lengths, self.quantile)
        kept = self.momentum if int(self.n_batches) else 0.0
        self.level.copy_(kept * self.level + (1 - kept) * found)
        self.n_batches.add_(1)


class LearnableScale(nn.Module):
    """clip_C(s h) with a trained s = exp(log_scale) > 0.

    Clipped rows give s no gradient, since their length is C whatever s is.
    """

    def __init__(self, bound: float, initial: float) -> None:
        super().__init__()
        self.bound = bound
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, h: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` rows of length at most C; refuses rows that are not finite."""
        return _rescaled(h, self.log_scale.clamp(-60.0, 60.0).double().exp(), self.bound)


class NoScale(Config):
    """The plain clip: the baseline. Embeddings shorter than C waste a part of the budget."""

    name: Literal["none"] = "none"

    def build(self, dim: int, bound: float) -> nn.Module:
        """Returns h -> clip_C(h) on ``(batch, dim)``."""
        return PlainClip(bound)


class Sphere(Config):
    """S1, sphere normalisation: every record uses the whole budget, whatever its raw length."""

    name: Literal["sphere"] = "sphere"

    def build(self, dim: int, bound: float) -> nn.Module:
        """Returns h -> C h / ||h|| on ``(batch, dim)``."""
        return SphereScale(bound)


class Quantile(Config):
    """S2, adaptive rescale: the q-quantile of the lengths goes to C, longer rows are clipped.

    Attributes:
        quantile: q in (0, 1]; 0.5 and 0.9 are the values to compare.
        momentum: What the moving average keeps of itself with each batch, in [0, 1).
    """

    name: Literal["quantile"] = "quantile"
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def build(self, dim: int, bound: float) -> nn.Module:
        """Returns the rescaling on ``(batch, dim)``; it learns its level in training mode."""
        return QuantileScale(bound, self.quantile, self.momentum)


class Learnable(Config):
    """S3, a learnt scale before the clip.

    Attributes:
        initial: s at the start.
    """

    name: Literal["learnable"] = "learnable"
    initial: PositiveFloat = 1.0

    def build(self, dim: int, bound: float) -> nn.Module:
        """Returns h -> clip_C(s h) on ``(batch, dim)``, s a parameter of the passive party."""
        return LearnableScale(bound, self.initial)


AnyScale = Annotated[NoScale | Sphere | Quantile | Learnable, Field(discriminator="name")]
"""Every scale a YAML file can name. Adding one is adding its class to this line."""


def _rescaled(h: Tensor, factor: Tensor, bound: float, like: Tensor | None = None) -> Tensor:
    """clip_C(factor h), computed in float64; clipped again after rounding to ``like``'s type."""
    dtype = torch.float64 if (h if like is None else like).dtype == torch.float64 else torch.float32
    wide = clip(clip(h, 1e30).double() * factor.double(), bound)
    return clip(wide.to(dtype), bound)
