"""What an attacker believes of pictures before it sees an embedding.

An embedding of some dozen numbers fits very many pictures, most of which look like nothing. A prior
chooses among them. Each is a frozen config with ``build(knowledge) -> Canvas``: numbers (a *code*)
that the attack moves, the picture that they paint, and what they cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from fedface.attacks.inversion.feature_inversion import Knowledge
from fedface.config import Config


@dataclass(frozen=True)
class Canvas:
    """The numbers that an attack moves.

    Attributes:
        start: ``(...)`` the code of one picture that the attack begins with.
        paint: Codes ``(n, ...)`` -> pictures ``(n, 3, size, size)``.
        cost: Codes -> ``(n,)`` what the prior takes for them.
        project: Codes -> the nearest allowed codes, after each step.
    """

    start: Tensor
    paint: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


class Smooth(Config):
    """Pixels, the smoother the better: the prior of He, Zhang, Lee, ACSAC 2019.

    Attributes:
        weight: lambda, what the total variation costs; the authors' own goes from 0 to 1e5, the
            more the later the cut layer, and in other units.
        start: ``grey`` (the paper's) or the ``mean`` of the shadow pictures.
    """

    name: Literal["smooth"] = "smooth"
    weight: NonNegativeFloat = 10.0
    start: Literal["grey", "mean"] = "grey"

    def build(self, knowledge: Knowledge) -> Canvas:
        """Returns pixels in [-1, 1].

        Raises:
            ValueError: If the mean is to be taken of less than two shadow pictures.
        """
        start = torch.zeros(3, knowledge.size, knowledge.size)
        if self.start == "mean":
            knowledge.require_shadow("an optimisation that starts from the mean picture")
            start = knowledge.images.mean(0)
        return Canvas(
            start,
            paint=lambda x: x,
            cost=lambda x: self.weight * total_variation(x),
            project=lambda x: x.clamp(-1, 1),
        )


class Eigenfaces(Config):
    """The mean shadow picture plus its principal components, standard normal a priori.

    Sirovich, Kirby, JOSA A 1987; Turk, Pentland 1991. A linear stand-in for the generative priors
    of stronger inversions (Zhang et al., "The Secret Revealer", CVPR 2020, optimise the latent code
    of a GAN); the choice and its defaults are ours.

    Attributes:
        n_components: At most this many, and less than the shadow pictures.
        weight: What the mean square of the code costs.
    """

    name: Literal["eigenfaces"] = "eigenfaces"
    n_components: PositiveInt = 64
    weight: NonNegativeFloat = 0.1

    def build(self, knowledge: Knowledge) -> Canvas:
        """Returns the coordinates along the components, in their standard deviations.

        Raises:
            ValueError: If there are less than two shadow pictures.
        """
        knowledge.require_shadow("an eigenface prior")
        n = len(knowledge.images)
        mean = knowledge.images.mean(0)
        _, lengths, axes = torch.linalg.svd((knowledge.images - mean).flatten(1), False)
        k = min(self.n_components, n - 1)
        basis = axes[:k] * lengths[:k, None] / (n - 1) ** 0.5
        return Canvas(
            torch.zeros(k),
            paint=lambda code: mean + (code @ basis).unflatten(1, mean.shape),
            cost=lambda code: self.weight * code.square().mean(1),
            project=lambda code: code,
        )


AnyPrior = Annotated[Smooth | Eigenfaces, Field(discriminator="name")]
"""Every prior that an inversion can have."""


def total_variation(images: Tensor) -> Tensor:
    """Returns ``(n,)``: mean squared difference of vertical plus of horizontal neighbours."""
    vertical = (images[:, :, 1:] - images[:, :, :-1]).square().mean((1, 2, 3))
    horizontal = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))
    return vertical + horizontal
