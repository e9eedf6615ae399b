"""Post-noise shrinkage (S4): what the active party does to a noisy embedding before its top model.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available; the options are our
reconstruction. All of it is post-processing and free.

Each is a frozen config with ``build(dim, bound, sigma) -> nn.Module``, a map z -> z' of ``(batch,
dim)``. Every map ends in a public constant that brings a typical coordinate to size one, so that
the top model and its learning rate see sigma / C and not C.
"""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from fedface.config import Config


class _Rescale(nn.Module):
    """z times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        """Returns ``(batch, dim)``."""
        return self.factor * z


class _Shrink(nn.Module):
    """z max(0, 1 - d sigma^2 / ||z||^2), then a constant."""

    def __init__(self, energy: float, factor: float) -> None:
        super().__init__()
        self.energy = energy
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        """Returns ``(batch, dim)``; rows within the noise's own length become zero."""
        squared = z.square().sum(1, keepdim=True).clamp(min=1e-30)
        return self.factor * z * (1 - self.energy / squared).clamp(min=0.0)


class _Normalise(nn.Module):
    """z sqrt(d) / ||z||."""

    def forward(self, z: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` rows of length sqrt(d); zero stays zero."""
        return math.sqrt(z.shape[1]) * nn.functional.normalize(z, eps=1e-30)


class NoPost(Config):
    """The noisy embedding as it is: z / sqrt(C^2 / d + sigma^2)."""

    name: Literal["none"] = "none"

    def build(self, dim: int, bound: float | None, sigma: float) -> nn.Module:
        """Returns the map; without a bound on the embeddings it is the identity."""
        if bound is None:
            return _Rescale(1.0)
        return _Rescale(1 / math.sqrt(bound**2 / dim + sigma**2))


class JamesStein(Config):
    """Positive-part shrinkage z max(0, 1 - d sigma^2 / ||z||^2), times sqrt(d) / C.

    The factor takes the noise's expected energy d sigma^2 off; James and Stein (1961) take (d - 2)
    sigma^2, which makes no difference at the d used here.
    """

    name: Literal["james_stein"] = "james_stein"

    def build(self, dim: int, bound: float | None, sigma: float) -> nn.Module:
        """Returns the map; without a bound it only shrinks."""
        factor = 1.0 if bound is None else math.sqrt(dim) / bound
        return _Shrink(dim * sigma**2, factor)


class Normalise(Config):
    """z sqrt(d) / ||z||: the direction alone."""

    name: Literal["normalise"] = "normalise"

    def build(self, dim: int, bound: float | None, sigma: float) -> nn.Module:
        """Returns the map; neither bound nor noise enters."""
        return _Normalise()


AnyPost = Annotated[NoPost | JamesStein | Normalise, Field(discriminator="name")]
"""Every post-processing a YAML file can name. Adding one is adding its class to this line."""
