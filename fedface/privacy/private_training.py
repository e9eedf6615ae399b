"""One client's local training under DP-SGD: Poisson sampling, clipped units, Gaussian noise.

Each step draws every unit with probability q on its own, sums the drawn units' clipped gradients
(:mod:`fedface.privacy.dp_sgd`), adds N(0, (z C)^2) to every coordinate of the sum, divides by the
public constant B and takes an optimiser step; momentum and weight decay act on what is private
already. A step whose draw is empty is a step with noise alone. Nothing that depends on the private
data decides how many steps there are or what a sum is divided by.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface.data.tensors import to_float
from fedface.privacy.accounting import Steps
from fedface.privacy.dp_sgd import ClippedSum
from fedface.privacy.units import ImagePrivacy, SubjectPrivacy
from fedface.training.local import LocalTraining, TrainingResult, flipped


def poisson_draw(n: int, rate: float, rng: torch.Generator) -> Tensor:
    """Returns the units of 0..n-1 that take part, ascending: each with probability ``rate``."""
    return (torch.rand(n, generator=rng, dtype=torch.float64) < rate).nonzero().squeeze(1)


def noisy_mean(
    total: Tensor, clip: float, noise_multiplier: float, batch_size: int, rng: torch.Generator
) -> Tensor:
    """Returns ``(total + N(0, (noise_multiplier clip)^2)) / batch_size``, where ``total`` lies."""
    noise = torch.randn(total.shape, generator=rng).to(total.device)
    return (total + noise_multiplier * clip * noise) / batch_size


def train_privately(
    backbone: nn.Module,
    head: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    settings: LocalTraining,
    privacy: ImagePrivacy | SubjectPrivacy,
    steps: Steps,
    rng: torch.Generator,
    noise_rng: torch.Generator,
    server_round: int = 1,
    n_rounds: int = 1,
) -> TrainingResult:
    """Trains ``backbone`` and ``head`` in place, in float32 on the device where they are.

    The result's loss and counts are the site's own: they are no private figures and must not leave.

    Args:
        backbone: ``(batch, 3, h, w)`` in [-1, 1] -> ``(batch, d)`` embeddings; no batch norm.
        head: ``(embeddings, labels) -> logits``.
        images: ``(n, h, w, 3)`` uint8.
        labels: ``(n,)`` rows of the head: who is on each image.
        settings: Optimiser and mirroring; ``batch_size`` images are held at once at most.
        privacy: Unit, clip norm, normalising constant.
        steps: Noise multiplier, sampling rate and number of steps of this round.
        rng: Draws units, images and mirroring.
        noise_rng: Draws the noise, and nothing else.
        server_round: The round, from 1, for the learning rate's course.
        n_rounds: The rounds of the whole run.

    Raises:
        ValueError: If the site has no images or no identities, the model is unfit, a subject's
            images do not fit into a batch or a gradient is not finite.
    """
    _check(images, labels, settings, privacy)
    device = next(backbone.parameters()).device
    optimizer = settings.optimizer.build((backbone, head), server_round, n_rounds)
    backbone.train()
    head.train()
    losses, n_seen = 0.0, 0
    summed = ClippedSum(backbone, head, privacy.clip)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), summed:
        torch.manual_seed(rng.initial_seed())
        for _ in range(steps.n_steps):
            summed.reset()
            for index, owners in _drawn(labels, privacy, steps.sample_rate, settings, rng):
                batch = to_float(images[index.numpy()])
                batch = flipped(batch, rng) if settings.flip else batch
                target = torch.from_numpy(np.asarray(labels)[index.numpy()])
                losses += summed.add(batch.to(device), target.to(device), owners)
                n_seen += len(index)
            for parameter, total in zip(summed.parameters, summed.sums, strict=True):
                parameter.grad = noisy_mean(
                    total, privacy.clip, steps.noise_multiplier, privacy.batch_size, noise_rng
                )
            optimizer.step()
    return TrainingResult(len(images), steps.n_steps, losses / max(n_seen, 1))


def _check(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    settings: LocalTraining,
    privacy: ImagePrivacy | SubjectPrivacy,
) -> None:
    if len(images) == 0:
        raise ValueError("private training needs at least one image, got 0")
    if labels is None or len(labels) != len(images):
        raise ValueError(
            f"privacy for the unit {privacy.unit} needs the identity of each image, got "
            f"{'none' if labels is None else len(labels)} for {len(images)} images"
        )
    n_people = len(np.unique(labels))
    subject = isinstance(privacy, SubjectPrivacy)
    privacy.check_delta(n_people if subject else len(images), f"{privacy.unit}s of the site")
    if settings.max_gradient_norm is not None:
        raise ValueError(
            "private training needs training.max_gradient_norm: null (privacy.clip bounds each "
            f"unit), got {settings.max_gradient_norm}"
        )
    if isinstance(privacy, SubjectPrivacy) and privacy.images_per_subject > settings.batch_size:
        raise ValueError(
            "privacy.images_per_subject needs to be <= training.batch_size="
            f"{settings.batch_size}, got {privacy.images_per_subject}"
        )


def _drawn(
    labels: NDArray[np.int64] | None,
    privacy: ImagePrivacy | SubjectPrivacy,
    rate: float,
    settings: LocalTraining,
    rng: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields (image indices, the unit of each or None), at most ``batch_size`` images at once."""
    people = torch.from_numpy(np.asarray(labels))
    if isinstance(privacy, ImagePrivacy):
        drawn = poisson_draw(len(people), rate, rng)
        pieces = torch.split(drawn, settings.batch_size)
        yield from ((piece, None) for piece in pieces if len(piece))
        return
    subjects = poisson_draw(int(people.max()) + 1, rate, rng)
    own = [(people == subject).nonzero().squeeze(1) for subject in subjects]
    most = privacy.images_per_subject
    chosen = [i[torch.randperm(len(i), generator=rng)[:most]] for i in own if len(i)]
    for group in chosen_in_batches(chosen, settings.batch_size):
        sizes = torch.tensor([len(index) for index in group])
        yield torch.cat(group), torch.repeat_interleave(torch.arange(len(group)), sizes)


def chosen_in_batches(chosen: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yields groups of subjects whose images are ``size`` at most; nobody is torn apart."""
    group: list[Tensor] = []
    for index in chosen:
        if group and sum(map(len, group)) + len(index) > size:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
