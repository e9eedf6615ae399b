"""Training before the federation, at each party alone, on public people.

Nothing private enters, so nothing is released and nothing accounted. A bottom model that is trained
so and then left as it is closes the gap that training on private records leaves in the per-release
guarantee: no record can then influence another one's embedding.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedface.config import Config
from fedface.heads import AnyHead, Softmax
from fedface.training.local import batches
from fedface.training.optimizers import SGD
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.distribution import AnyDistribution, NoDistribution
from fedface.vertical.passive import PassiveParty
from fedface.vertical.post import NoPost


class Pretraining(Config):
    """How a bottom model is trained on public people.

    Attributes:
        epochs: Passes over the public pictures.
        batch_size: Pictures per step.
        head: Embedding and public identity -> logits; thrown away afterwards.
        through_noise: Whether a passive party trains on what it will release, clipped and noised:
            embeddings then learn to survive the noise. Otherwise on its raw embeddings.
        distribution: A loss that shapes these embeddings, at passive parties.
        distribution_weight: The factor on it.
        optimizer: Of bottom model, scale and head; its rate falls from epoch to epoch.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 64
    head: AnyHead = Softmax()
    through_noise: bool = True
    distribution: AnyDistribution = NoDistribution()
    distribution_weight: NonNegativeFloat = 1.0
    optimizer: SGD = SGD()


def pretrain_party(
    party: PassiveParty,
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> float:
    """Trains bottom model and scale of ``party`` in place; returns the last epoch's mean loss.

    Args:
        party: A new party; its account stays as it is.
        images: ``(n, 3, size, size)`` public views in [-1, 1], on the CPU.
        labels: ``(n,)`` int64, each of 0..n_people - 1 occurs.
        settings: How.
        augmentation: How views are changed.
        rng: Draws order, changes, noise and the head.

    Raises:
        ValueError: If there is no picture or the loss is not finite.
    """
    release, n_people = party.settings.release, _people(labels)
    noisy = settings.through_noise
    sigma = release.noise if noisy else 0.0
    rescale = NoPost().build(party.dim, release.bound if noisy else None, sigma)
    distribution = settings.distribution.build(party.dim, n_people, release.bound or 1.0, rng)
    head = settings.head.build(party.dim, n_people, rng)

    def loss(batch: Tensor, target: Tensor) -> Tensor:
        h = party.bottom(batch)
        z = release.release(party.scale(h), rng) if noisy else h
        total = functional.cross_entropy(head(rescale(z), target), target)
        if distribution is not None:
            total = total + settings.distribution_weight * distribution(z, target)
        return total

    modules = [party.bottom, party.scale, head, *([distribution] if distribution else [])]
    return _train(modules, loss, images, labels, settings, augmentation, rng)


def pretrain_backbone(
    backbone: nn.Module,
    dim: int,
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> float:
    """Trains the active party's own ``backbone`` in place: no clip, no noise, no distribution loss.

    Arguments, return value and errors as for :func:`pretrain_party`; ``dim`` is the length of its
    embeddings.
    """
    head = settings.head.build(dim, _people(labels), rng)

    def loss(batch: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(head(backbone(batch), target), target)

    return _train([backbone, head], loss, images, labels, settings, augmentation, rng)


def _people(labels: Tensor) -> int:
    if not len(labels):
        raise ValueError("pretraining needs public pictures, got none")
    return int(labels.max()) + 1


def _train(
    modules: Sequence[nn.Module],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> float:
    """Plain epochs over the public pictures on the device of the first module."""
    device = next(modules[0].parameters()).device
    optimizer = settings.optimizer.build(tuple(m.to(device).train() for m in modules), 1, 1)
    losses: list[float] = []
    for epoch in range(1, settings.epochs + 1):
        losses.clear()
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.rate(epoch, settings.epochs)
        for index in batches(len(images), settings.batch_size, rng):
            loss = loss_of(augmentation(images[index], rng).to(device), labels[index].to(device))
            if not torch.isfinite(loss):
                raise ValueError(
                    f"pretraining needs a finite loss, got {loss.item()} "
                    "(lower pretraining.optimizer.learning_rate)"
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)
