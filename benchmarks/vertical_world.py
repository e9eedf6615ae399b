"""A small vertical federation in one process, recorded as its parties see it: for the attacks.

Every person belongs to one group: *enrolled* (trained on; their later photographs are attacked),
*stranger* (released, never trained on), *shadow* (the attacker's own people, released too),
*public* (a bottom model is trained on them where it is frozen), *independent* (nobody in the
federation has them: they train the recogniser that judges reconstructions). The active party sees
the left half of a photograph, the one passive party the right half.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface.backbones import SmallConv
from fedface.data.face_parameters import Strength
from fedface.data.lfw import LfwFaces
from fedface.data.renderer import RenderedFaces
from fedface.data.tensors import to_float
from fedface.evaluation.leakage import Embedder, Gallery
from fedface.heads import CosFace
from fedface.modes import evaluating
from fedface.privacy import AnyRelease, EmbeddingRelease, Unprotected
from fedface.random import numpy_stream, stream
from fedface.training.local import LocalTraining, batches, train_locally
from fedface.training.optimizers import SGD
from fedface.vertical.active import ActiveParty, ActiveSettings
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import AnyDistribution, NoDistribution, SupervisedContrastive
from fedface.vertical.passive import PassiveParty, PassiveSettings
from fedface.vertical.scale import AnyScale, NoScale, Sphere
from fedface.vertical.views import LeftRight

GROUPS = ("enrolled", "stranger", "shadow", "public", "independent")
"""The groups that people are dealt to, in the order of their numbers."""

Task = Literal["people", "watch_list"]
"""Whom the active party tells apart: every enrolled person, or few of them from all others."""


@dataclass(frozen=True)
class Size:
    """How large the world is.

    Attributes:
        faces: ``rendered``, or the photographs of ``lfw``.
        people: Of each group, in the order of :data:`GROUPS`.
        photographs: Of each person; ``later`` of an enrolled one are never trained on.
        later: See ``photographs``.
        pixels: The side of the views.
        epochs: Of the federation's training.
        dim: Numbers in an embedding.
        inversion_steps: Of inversion by optimisation.
        completion_steps: Of model completion.
        passes: Over the pictures, of the recogniser, the decoder and the shadow bottom model.
    """

    faces: Literal["rendered", "lfw"] = "rendered"
    people: tuple[int, int, int, int, int] = (24, 24, 60, 24, 60)
    photographs: int = 12
    later: int = 4
    pixels: int = 32
    epochs: int = 20
    dim: int = 32
    inversion_steps: int = 1000
    completion_steps: int = 1024
    passes: int = 50


@dataclass(frozen=True)
class Protection:
    """What the passive party, and the active party for it, do about privacy.

    Attributes:
        name: For the table.
        epsilon: Budget at delta = 1e-5, replace-one, for all releases of a record; None for none.
        adaptive: Whether embeddings are adapted (AFE): sphere and supervised contrastive.
        frozen: Whether the bottom model is trained on public people and then frozen: a record is
            released once, and no gradient comes back.
        clip: C without noise; None sends embeddings as they are.
        max_gradient_norm: Of the active party.
    """

    name: str
    epsilon: float | None = None
    adaptive: bool = False
    frozen: bool = False
    clip: float | None = None
    max_gradient_norm: float | None = None

    def release(self, epochs: int) -> AnyRelease:
        """Returns the mechanism, budgeted for ``epochs`` and one inference, or for one release."""
        if self.epsilon is None:
            return Unprotected(clip=self.clip)
        return EmbeddingRelease(epsilon=self.epsilon, n_releases=1 if self.frozen else epochs + 1)

    @property
    def scale(self) -> AnyScale:
        """The sphere where embeddings are adapted, else the plain clip."""
        return Sphere() if self.adaptive else NoScale()

    @property
    def distribution(self) -> AnyDistribution:
        """Supervised contrastive where embeddings are adapted, else none."""
        return SupervisedContrastive() if self.adaptive else NoDistribution()


@dataclass(frozen=True)
class World:
    """Views of everybody.

    Attributes:
        own: ``(n, 3, pixels, pixels)`` what the active party sees.
        other: What the passive party sees.
        people: ``(n,)`` int64 whom each record shows, counted over all groups.
        group: ``(n,)`` place in :data:`GROUPS`.
        is_later: ``(n,)`` whether it is a later photograph.
    """

    own: Tensor
    other: Tensor
    people: Tensor
    group: Tensor
    is_later: Tensor

    def records(self, group: str, later: bool | None = None) -> Tensor:
        """Returns the records of a group, all or those (not) later."""
        chosen = self.group == GROUPS.index(group)
        if later is not None:
            chosen = chosen & (self.is_later == later)
        return chosen.nonzero().flatten()


@dataclass(frozen=True)
class Federation:
    """A trained federation, and what went over the wire.

    Attributes:
        passive: The passive party.
        active: The active party.
        gradients: ``(epochs, n_trained, dim)`` dL / dz of every trained record in every epoch, in
            the order of ``World.records("enrolled", later=False)``; None where none came back.
        initial: The bottom model before the training.
        accuracy: Share of the later photographs of enrolled people that are recognised.
    """

    passive: PassiveParty
    active: ActiveParty
    gradients: Tensor | None
    initial: nn.Module
    accuracy: float

    def encode(self, images: Tensor) -> Tensor:
        """Returns the ``(n, dim)`` embeddings of passive views before any noise."""
        u: Tensor = self.passive.scale(self.passive.bottom(images))
        return u

    def released(self, world: World, records: Tensor, seed: int) -> Tensor:
        """Returns what the passive party releases of ``records`` for inference, once for all."""
        rng = stream(seed, "inference noise", int(records[0]), len(records))
        return self.passive.embed_once(world.other[records], records, rng)


def world_of(size: Size, seed: int) -> World:
    """Returns a world of rendered or real faces, the same for the same arguments.

    Raises:
        ValueError: If the real faces are absent, or too few people have enough photographs.
    """
    return _photographed(size, seed) if size.faces == "lfw" else _rendered(size, seed)


def _rendered(size: Size, seed: int) -> World:
    strength = Strength(**dict.fromkeys(Strength.model_fields, 0.4) | {"occlusion": 0.0})
    faces = RenderedFaces(
        n_identities=sum(size.people),
        images_per_identity=size.photographs,
        size=size.pixels,
        seed=seed,
        strength=strength,
    ).load()
    return _dealt(faces.images, size)


def _photographed(size: Size, seed: int) -> World:
    """The first photographs of people of LFW with enough of them, drawn by the seed."""
    root = Path(os.environ.get("FEDFACE_DATA", "../shared/data")) / "lfw"
    faces = LfwFaces(
        root=root, size=size.pixels, min_images=size.photographs, max_images=size.photographs
    ).load()
    if faces.n_identities < (needed := sum(size.people)):
        raise ValueError(
            f"the world needs {needed} people with {size.photographs} photographs, "
            f"found {faces.n_identities} in {root}"
        )
    drawn = numpy_stream(seed, "people").permutation(faces.n_identities)[:needed]
    of_each = [np.flatnonzero(faces.identities == person) for person in drawn]
    return _dealt(np.asarray(faces.images[np.concatenate(of_each)]), size)


def _dealt(images: NDArray[np.uint8], size: Size) -> World:
    """The images, ``size.photographs`` of one person after the other, as a world."""
    left, right = LeftRight(size=size.pixels).cut(images)
    people = torch.arange(len(images)) // size.photographs
    bounds = torch.tensor(np.cumsum(size.people))
    place = torch.arange(len(people)) % size.photographs
    return World(
        own=to_float(left),
        other=to_float(right),
        people=people,
        group=torch.bucketize(people, bounds, right=True),
        is_later=place >= size.photographs - size.later,
    )


def labels_of(world: World, task: Task, size: Size, group: str = "enrolled") -> Tensor:
    """Returns ``(n,)`` labels of all records; only those of ``group`` mean something.

    ``watch_list``: one in six people of the group is on it (label 1).
    """
    number = GROUPS.index(group)
    local = (world.people - sum(size.people[:number])).clamp(min=0)
    return (local < max(1, size.people[number] // 6)).long() if task == "watch_list" else local


def train(
    world: World, size: Size, protection: Protection, seed: int, task: Task = "people"
) -> Federation:
    """Returns the federation of one active and one passive party, trained under ``protection``."""
    passive = _passive(world, size, protection, seed)
    initial = _passive(world, size, protection, seed).bottom.eval()
    labels = labels_of(world, task, size)
    if protection.frozen:
        teacher = Protection("public", adaptive=False)
        public = _passive(world, size, teacher, seed)
        there = labels_of(world, "people", size, "public")
        n_public = size.people[GROUPS.index("public")]
        partner = _active(public, world, size, teacher, n_public, seed)
        records = world.records("public")
        _steps(world, partner, public, there, records, size.epochs, seed, frozen=False)
        passive.bottom.load_state_dict(public.bottom.state_dict())
    n_labels = 2 if task == "watch_list" else size.people[0]
    active = _active(passive, world, size, protection, n_labels, seed)
    trained = world.records("enrolled", later=False)
    frozen = protection.frozen
    gradients = _steps(world, active, passive, labels, trained, size.epochs, seed, frozen)
    passive.bottom.eval()
    passive.scale.eval()
    later = world.records("enrolled", later=True)
    federation = Federation(passive, active, None if frozen else gradients, initial, 0.0)
    z = federation.released(world, later, seed)
    found = active.predictions(world.own[later], [z], later)
    return replace(federation, accuracy=float((found == labels[later]).float().mean()))


def recogniser(world: World, seed: int, epochs: int) -> Embedder:
    """Returns a recogniser of passive views, trained on the independent people alone."""
    records = world.records("independent")
    people, labels = torch.unique(world.people[records], return_inverse=True)
    size = world.other.shape[-1]
    backbone = SmallConv(embedding_size=64).build(size, stream(seed, "recogniser"))
    head = CosFace(scale=16.0, margin=0.2).build(64, len(people), stream(seed, "recogniser head"))
    pixels = ((world.other[records] + 1) * 127.5).round().to(torch.uint8)
    train_locally(
        backbone,
        head,
        pixels.permute(0, 2, 3, 1).numpy(),
        labels.numpy(),
        LocalTraining(epochs=epochs, flip=False, optimizer=SGD(learning_rate=0.05)),
        stream(seed, "recogniser training"),
    )

    def embed(images: Tensor) -> NDArray[np.float32]:
        with evaluating(backbone), torch.no_grad():
            raw = torch.cat([backbone(part) for part in torch.split(images, 256)]).double()
        unit: NDArray[np.float32] = nn.functional.normalize(raw, eps=1e-30).float().numpy()
        return unit

    return embed


def gallery(world: World, embed: Embedder) -> Gallery:
    """Returns the earlier photographs of the enrolled people, as the recogniser sees them."""
    records = world.records("enrolled", later=False)
    return Gallery(embed(world.other[records]), world.people[records].numpy())


SIZES = {
    "full": Size(),
    "lfw": Size(faces="lfw", people=(24, 24, 60, 24, 52), photographs=9, later=3),
    "small": Size(
        people=(12, 12, 40, 12, 30),
        photographs=9,
        later=3,
        epochs=15,
        inversion_steps=150,
        completion_steps=200,
        passes=30,
    ),
    "tiny": Size(
        people=(4, 4, 4, 4, 6),
        photographs=6,
        later=2,
        epochs=2,
        dim=8,
        inversion_steps=3,
        completion_steps=3,
        passes=1,
    ),
}
"""The worlds that can be asked for; the tiny one shows nothing but that all runs."""


def add_world_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--size``, ``--seeds`` and ``--epsilons``."""
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="full", help="of the world; lfw: real faces"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="worlds to average over")
    parser.add_argument(
        "--epsilons", type=float, nargs="+", default=[1.0, 4.0, 16.0], help="budgets at delta 1e-5"
    )


def _passive(world: World, size: Size, protection: Protection, seed: int) -> PassiveParty:
    settings = PassiveSettings(
        backbone=SmallConv(widths=(16, 32, 32, 32), embedding_size=size.dim),
        scale=protection.scale,
        release=protection.release(size.epochs),
        optimizer=SGD(learning_rate=0.02),
    )
    return settings.build(size.pixels, len(world.people), stream(seed, "passive"))


def _active(
    passive: PassiveParty,
    world: World,
    size: Size,
    protection: Protection,
    n_labels: int,
    seed: int,
) -> ActiveParty:
    release = passive.settings.release
    settings = ActiveSettings(
        backbone=SmallConv(widths=(16, 32, 32, 32), embedding_size=size.dim),
        distribution=protection.distribution,
        hidden=(64,),
        embedding_size=32,
        max_gradient_norm=protection.max_gradient_norm,
        optimizer=SGD(learning_rate=0.02),
    )
    channel = Channel("right", size.dim, release.bound, release.noise)
    rng = stream(seed, "active")
    return settings.build([channel], n_labels, len(world.people), size.pixels, rng)


def _steps(
    world: World,
    active: ActiveParty,
    passive: PassiveParty,
    labels: Tensor,
    trained: Tensor,
    epochs: int,
    seed: int,
    frozen: bool,
) -> Tensor:
    """Split training; returns every gradient that the passive party gets."""
    order, noise = stream(seed, "order"), stream(seed, "noise")
    seen = torch.zeros(epochs, len(trained), passive.dim)
    embed: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    embed = passive.embed_once if frozen else passive.embed
    for epoch in range(epochs):
        for index in batches(len(trained), 32, order):
            records = trained[index]
            z = embed(world.other[records], records, noise)
            step = active.step(world.own[records], [z], labels[records], records)
            (gradient,) = step.gradients
            if not frozen and gradient is not None:
                passive.backward(gradient)
                seen[epoch, index] = gradient.detach()
    return seen
