"""One client's local training: a few epochs of margin softmax on its own people."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedface.config import Config
from fedface.data.tensors import to_float
from fedface.training.optimizers import SGD

Poison = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""``(images (batch, 3, h, w), labels (batch,), rng) -> (images, labels)`` of each batch."""

ExtraLoss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""``(backbone, images (batch, 3, h, w), labels (batch,), rng) -> scalar`` added to each loss."""

InPlace = Callable[[nn.Module], None]
"""``backbone -> None``: changes its gradients, or its weights, in place."""


@dataclass(frozen=True)
class Hooks:
    """What a malicious site changes in its training; an honest site changes nothing.

    Attributes:
        poison: Changes each batch before it is trained on.
        extra_loss: A further term of every step's loss.
        gradients: Changes the backbone's gradients after they are computed and clipped.
        weights: Changes the backbone's weights after every optimiser step.
    """

    poison: Poison | None = None
    extra_loss: ExtraLoss | None = None
    gradients: InPlace | None = None
    weights: InPlace | None = None


HONEST = Hooks()


class LocalTraining(Config):
    """How a site trains in one round."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 32
    optimizer: SGD = SGD()
    flip: bool = True
    """Mirror each image left to right with probability one half."""
    max_gradient_norm: PositiveFloat | None = None
    """Clip each step's gradient (backbone and head together) to this Euclidean norm."""


@dataclass(frozen=True)
class TrainingResult:
    """What one round at one site amounted to.

    Attributes:
        n_examples: Images of the site.
        n_steps: Optimiser steps taken.
        loss: Mean head loss over the steps (the extra loss not counted).
    """

    n_examples: int
    n_steps: int
    loss: float


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yields index tensors that visit ``0..n-1`` once in random order.

    A last batch of one joins the batch before it: batch statistics of one image do not exist.
    """
    order = torch.randperm(n, generator=rng)
    pieces = list(torch.split(order, size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    yield from pieces


def precision(device: torch.device) -> AbstractContextManager[None]:
    """Returns the context of a forward pass: bfloat16 autocast on a GPU, float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def train_locally(
    backbone: nn.Module,
    head: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    settings: LocalTraining,
    rng: torch.Generator,
    server_round: int = 1,
    n_rounds: int = 1,
    hooks: Hooks = HONEST,
) -> TrainingResult:
    """Trains ``backbone`` and ``head`` in place, on the device where they are.

    Dropout draws from torch's global generator: it is seeded from ``rng`` and put back afterwards.

    Args:
        backbone: ``(batch, 3, h, w)`` in [-1, 1] -> ``(batch, d)`` embeddings.
        head: ``(embeddings, labels) -> logits``.
        images: ``(n, h, w, 3)`` uint8.
        labels: ``(n,)`` rows of the head.
        settings: Epochs, batch size, optimiser.
        rng: Draws the order, the mirroring and what ``hooks`` need.
        server_round: The round, from 1, for the learning rate's course.
        n_rounds: The rounds of the whole run.
        hooks: What an attack changes.

    Raises:
        ValueError: If the site has no images or the loss is not finite.
    """
    if len(images) == 0:
        raise ValueError("local training needs at least one image, got 0")
    device = next(backbone.parameters()).device
    optimizer = settings.optimizer.build((backbone, head), server_round, n_rounds)
    backbone.train()
    head.train()
    losses: list[Tensor] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(rng.initial_seed())
        for _ in range(settings.epochs):
            for index in batches(len(images), settings.batch_size, rng):
                batch, target = _load(images[index.numpy()], labels[index.numpy()], hooks, rng)
                if settings.flip:
                    batch = flipped(batch, rng)
                batch = batch.to(device, memory_format=torch.channels_last)
                target = target.to(device)
                with precision(device):
                    loss = functional.cross_entropy(head(backbone(batch), target).float(), target)
                    total = loss
                    if hooks.extra_loss is not None:
                        total = loss + hooks.extra_loss(backbone, batch, target, rng)
                _descend(optimizer, total, settings.max_gradient_norm, backbone, hooks)
                losses.append(loss.detach())
    return TrainingResult(len(images), len(losses), torch.stack(losses).mean().item())


def _load(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    hooks: Hooks,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    batch, target = to_float(images), torch.from_numpy(labels)
    return (batch, target) if hooks.poison is None else hooks.poison(batch, target, rng)


def flipped(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Returns each image or its mirror image, with equal odds."""
    mirrored = torch.rand(len(batch), generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


def _descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    max_norm: float | None,
    backbone: nn.Module,
    hooks: Hooks,
) -> None:
    """One optimiser step; refuses a loss that would make the weights NaN."""
    if not torch.isfinite(loss):
        raise ValueError(
            f"local training needs a finite loss, got {loss.item()} "
            "(lower training.optimizer.learning_rate)"
        )
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if max_norm is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_norm)
    if hooks.gradients is not None:
        hooks.gradients(backbone)
    optimizer.step()
    if hooks.weights is not None:
        with torch.no_grad():
            hooks.weights(backbone)
