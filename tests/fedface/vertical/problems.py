"""Small vertical problems and a loop that trains parties on them, step by step in one process."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedface.privacy import AnyRelease
from fedface.random import stream
from fedface.training.local import batches
from fedface.training.optimizers import SGD
from fedface.vertical.active import ActiveParty, ActiveSettings
from fedface.vertical.channel import Channel
from fedface.vertical.passive import PassiveParty, PassiveSettings


def clusters(n: int, dim: int, n_classes: int, spread: float) -> tuple[Tensor, Tensor]:
    """Gaussian clusters around random directions: features ``(n, dim)`` and labels."""
    rng = stream(0, "clusters")
    labels = torch.randint(n_classes, (n,), generator=rng)
    means = nn.functional.normalize(torch.randn(n_classes, dim, generator=rng))
    if n_classes == 2:
        means[1] = -means[0]
    return means[labels] + spread * torch.randn(n, dim, generator=rng), labels


def linear_party(
    release: AnyRelease, scale, n_records: int, dim: int, gain: float = 1.0, rate: float = 0.05
) -> PassiveParty:
    """A passive party whose bottom model is ``gain`` times the identity at the start."""
    settings = PassiveSettings(
        release=release, scale=scale, optimizer=SGD(learning_rate=rate, weight_decay=0)
    )
    bottom = nn.Linear(dim, dim, bias=False)
    nn.init.zeros_(bottom.weight)
    with torch.no_grad():
        bottom.weight.add_(gain * torch.eye(dim))
    return PassiveParty(bottom, dim, settings, n_records)


def channels(passives: Sequence[PassiveParty]) -> list[Channel]:
    releases = [p.settings.release for p in passives]
    return [
        Channel(f"p{number}", party.dim, release.bound, release.noise)
        for number, (party, release) in enumerate(zip(passives, releases, strict=True))
    ]


def labels_only(settings: ActiveSettings, passives: Sequence[PassiveParty], n_classes: int):
    """An active party without features of its own."""
    n_records = len(passives[0].tensors()["inference.z"])
    built = channels(passives)
    return settings.build(built, n_classes, n_records, 16, stream(0, "active"))


def train(
    active: ActiveParty,
    passives: Sequence[PassiveParty],
    own: Tensor | None,
    views: Sequence[Tensor],
    labels: Tensor,
    records: Tensor,
    epochs: int,
    batch_size: int,
) -> list[float]:
    """Plain split training on ``records``; returns the loss of each step."""
    order, noise = stream(0, "order"), [stream(0, "noise", k) for k in range(len(passives))]
    losses = []
    for _ in range(epochs):
        for index in batches(len(records), batch_size, order):
            chosen = records[index]
            z = [
                party.embed(view[chosen], chosen, rng)
                for party, view, rng in zip(passives, views, noise, strict=True)
            ]
            step = active.step(None if own is None else own[chosen], z, labels[chosen], chosen)
            for party, gradient in zip(passives, step.gradients, strict=True):
                if gradient is not None:
                    party.backward(gradient)
            losses.append(step.loss)
    return losses


def released(
    passives: Sequence[PassiveParty], views: Sequence[Tensor], records: Tensor
) -> list[Tensor]:
    return [
        party.embed_once(view[records], records, stream(1, "noise", k))
        for k, (party, view) in enumerate(zip(passives, views, strict=True))
    ]


def n_right(
    active: ActiveParty,
    passives: Sequence[PassiveParty],
    own: Tensor | None,
    views: Sequence[Tensor],
    labels: Tensor,
    records: Tensor,
) -> int:
    z = released(passives, views, records)
    found = active.predictions(None if own is None else own[records], z, records)
    return int((found == labels[records]).sum())
