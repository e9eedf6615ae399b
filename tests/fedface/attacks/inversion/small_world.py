"""Pictures that a small bottom model tells all about: for attacks that must work undefended."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedface.attacks.inversion import Knowledge
from fedface.evaluation.ssim import ssim
from fedface.privacy import AnyRelease
from fedface.random import stream

SIZE, DIM, N_PEOPLE = 16, 24, 6


def smooth_pictures(n: int, seed: int) -> Tensor:
    """``(n, 3, 16, 16)`` pictures in [-1, 1] made of 4 x 4 coarse numbers, which DIM can carry."""
    coarse = torch.rand(n, 1, 4, 4, generator=stream(seed, "coarse")) * 2 - 1
    fine = functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    return fine.expand(-1, 3, -1, -1).contiguous()


def bottom_model() -> nn.Module:
    """A fixed random projection behind a mild non-linearity: ``(n, 3, 16, 16) -> (n, DIM)``."""
    weight = torch.randn(DIM, 16, generator=stream(0, "bottom")) / 4

    class Bottom(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            coarse = functional.adaptive_avg_pool2d(images, 4).mean(1).flatten(1)
            return torch.tanh(coarse @ weight.T)

    return Bottom()


@dataclass(frozen=True)
class Scene:
    truth: Tensor
    observed: Tensor
    knowledge: Knowledge


def scene(release: AnyRelease, n_shadow: int = 200, n: int = 12) -> Scene:
    """Pictures under attack, what was released of them, and the attacker's own pairs."""
    bottom = bottom_model()
    truth, shadow = smooth_pictures(n, 1), smooth_pictures(n_shadow, 2)
    rng = stream(3, "noise")
    observed, embeddings = (release.release(bottom(x), rng) for x in (truth, shadow))
    return Scene(truth, observed, Knowledge(SIZE, bottom, shadow, embeddings))


def likeness(images: Tensor, truth: Tensor) -> float:
    """Mean SSIM of pictures in [-1, 1]."""
    return float(ssim((images + 1) / 2, (truth + 1) / 2).mean())


def nearest_truth(images: Tensor, truth: Tensor) -> float:
    """Share of reconstructions that lie nearer to their own picture than to any other."""
    nearest = torch.cdist(images.flatten(1), truth.flatten(1)).argmin(1)
    return float((nearest == torch.arange(len(truth))).float().mean())
