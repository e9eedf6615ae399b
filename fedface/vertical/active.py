"""The active party: labels, its own features, noisy embeddings in; a loss and gradients out.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available; the rest is our
reconstruction of standard split learning around it. Nothing here knows a network.

The gradients carry labels: a passive party can read much of them off. The embeddings' guarantee
says nothing about that; ``max_gradient_norm`` only bounds what one record's gradient can do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from fedface import parameters
from fedface.backbones import AnyBackbone
from fedface.backbones.initialisation import initialised
from fedface.config import Config
from fedface.heads import AnyHead, Softmax
from fedface.modes import evaluating
from fedface.privacy.clipping import clip
from fedface.training.optimizers import SGD
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import AnyDistribution, NoDistribution
from fedface.vertical.joint import JointModel, perceptron
from fedface.vertical.missing import Missing, Substitutes
from fedface.vertical.momentum import momentum, restore_momentum
from fedface.vertical.passive import part
from fedface.vertical.post import AnyPost, NoPost


@dataclass(frozen=True)
class Step:
    """One training step of the active party.

    Attributes:
        loss: Task loss plus weighted distribution loss.
        task_loss: Mean cross entropy of the head.
        distribution_loss: Mean over the parties present; 0 without one.
        gradients: Party by party dL / dz ``(batch, dim)``, or None for one that was missing.
    """

    loss: float
    task_loss: float
    distribution_loss: float
    gradients: tuple[Tensor | None, ...]


class ActiveSettings(Config):
    """What the active party computes.

    Attributes:
        backbone: The bottom model of its own view; None when it has labels only.
        post: What it does to noisy embeddings first.
        distribution: The loss that shapes each party's noisy embeddings.
        distribution_weight: lambda, the factor on it.
        missing: What stands in for an embedding that did not arrive.
        hidden: Widths of the top model's hidden layers.
        embedding_size: Numbers in the joint embedding, the top model's output.
        head: Joint embedding and identity -> logits, over the enrolled people.
        max_gradient_norm: Longest gradient row that is returned; None returns them as they are.
        optimizer: Of everything that the active party trains.
    """

    backbone: AnyBackbone | None = None
    post: AnyPost = NoPost()
    distribution: AnyDistribution = NoDistribution()
    distribution_weight: NonNegativeFloat = 1.0
    missing: Missing = "mean"
    hidden: tuple[PositiveInt, ...] = (128,)
    embedding_size: PositiveInt = 64
    head: AnyHead = Softmax()
    max_gradient_norm: PositiveFloat | None = None
    optimizer: SGD = SGD()

    def build(
        self,
        channels: Sequence[Channel],
        n_identities: int,
        n_records: int,
        image_size: int,
        rng: torch.Generator,
    ) -> "ActiveParty":
        """Returns a new active party; ``rng`` fixes its weights.

        Args:
            channels: One per passive party, in the order of all later lists; may be empty.
            n_identities: Enrolled people: labels are 0..n_identities - 1.
            n_records: Records in all, training and test together.
            image_size: The side of its own views in pixels; not used without a backbone.
            rng: Draws the initial weights.

        Raises:
            ValueError: If there is neither a channel nor an own backbone, or the distribution
                does not fit the dimensions.
        """
        if not channels and self.backbone is None:
            raise ValueError("the active party needs a passive party or a backbone, got neither")
        own = None if self.backbone is None else self.backbone.build(image_size, rng)
        own_dim = 0 if self.backbone is None else self.backbone.embedding_size
        widths = (own_dim + sum(c.dim for c in channels), *self.hidden, self.embedding_size)
        distributions = [
            self.distribution.build(c.dim, n_identities, c.bound or 1.0, rng) for c in channels
        ]
        model = JointModel(
            own,
            [self.post.build(c.dim, c.bound, c.sigma) for c in channels],
            [Substitutes(self.missing, c.dim, n_records) for c in channels],
            [d for d in distributions if d is not None],
            initialised(lambda: perceptron(widths), rng),
            self.head.build(self.embedding_size, n_identities, rng),
        )
        return ActiveParty(self, tuple(channels), model)


class ActiveParty:
    """The active party: top model over [own features, embeddings of the passive parties].

    Attributes:
        settings: What it was built from.
        channels: The passive parties, in order.
        model: Everything that it trains.
        optimizer: Of the model.
    """

    def __init__(
        self, settings: ActiveSettings, channels: tuple[Channel, ...], model: JointModel
    ) -> None:
        self.settings = settings
        self.channels = channels
        self.model = model
        self.optimizer = settings.optimizer.build((model,), 1, 1)

    def start_round(self, server_round: int, n_rounds: int) -> None:
        """Sets the learning rate of ``server_round`` (from 1) of ``n_rounds``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.optimizer.rate(server_round, n_rounds)

    def step(
        self,
        own: Tensor | None,
        received: Sequence[Tensor | None],
        labels: Tensor,
        records: Tensor,
    ) -> Step:
        """Takes one optimiser step and returns the gradients for the passive parties.

        Args:
            own: ``(n, 3, size, size)`` own views in [-1, 1], or None without a backbone.
            received: Party by party ``(n, dim)`` noisy embeddings, or None for one that is
                missing.
            labels: ``(n,)`` int64.
            records: ``(n,)`` int64 which records they are.

        Raises:
            ValueError: If a party's embeddings are refused (:meth:`Channel.check`; nothing has
                changed then), an input is missing, or the loss is not finite.
        """
        self.model.train()
        self._check(own, received, len(labels))
        leaves = [None if z is None else z.detach().clone().requires_grad_() for z in received]
        logits = self.model.head(self.model(own, leaves, records), labels)
        task = functional.cross_entropy(logits, labels)
        shaping = self.model.distribution_loss(leaves, labels)
        loss = task + self.settings.distribution_weight * shaping
        if not torch.isfinite(loss):
            raise ValueError(
                f"vertical training needs a finite loss, got {loss.item()} "
                "(lower optimizer.learning_rate)"
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        for z, memory in zip(received, self.model.substitutes, strict=True):
            if z is not None and isinstance(memory, Substitutes):
                memory.remember(z.detach(), records)
        gradients = tuple(None if z is None else self._returned(z) for z in leaves)
        return Step(loss.item(), task.item(), shaping.item(), gradients)

    def embeddings(
        self, own: Tensor | None, received: Sequence[Tensor | None], records: Tensor
    ) -> NDArray[np.float32]:
        """Returns ``(n, embedding_size)`` joint embeddings of length one, in evaluation mode.

        For :mod:`fedface.evaluation`; arguments and errors as for :meth:`step`.
        """
        self._check(own, received, len(records))
        with evaluating(self.model), torch.no_grad():
            joint = self.model(own, received, records).double()
        lengths = joint.norm(dim=1, keepdim=True)
        if len(joint) and not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
            raise ValueError("joint embeddings need a finite length above 0, got others")
        unit: NDArray[np.float32] = (joint / lengths).float().cpu().numpy()
        return unit

    def predictions(
        self, own: Tensor | None, received: Sequence[Tensor | None], records: Tensor
    ) -> Tensor:
        """Returns ``(n,)`` which enrolled person each record shows, in evaluation mode.

        Arguments and errors as for :meth:`step`.
        """
        self._check(own, received, len(records))
        with evaluating(self.model), torch.no_grad():
            joint = self.model(own, received, records)
            anyone = torch.zeros(len(joint), dtype=torch.int64, device=joint.device)
            logits: Tensor = self.model.head(joint, anyone)
        return logits.argmax(1)

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that a resumed active party needs, by name."""
        groups = {"model": self.model.state_dict(), "momentum": momentum(self.optimizer)}
        return {
            f"{group}.{name}": value.detach().cpu().clone()
            for group, values in groups.items()
            for name, value in values.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the party into the state that :meth:`tensors` returned.

        Raises:
            KeyError: If a name is unknown.
            ValueError: If a shape differs.
        """
        parameters.load(self.model, part(tensors, "model"))
        restore_momentum(self.optimizer, part(tensors, "momentum"))

    def _check(self, own: Tensor | None, received: Sequence[Tensor | None], n: int) -> None:
        if len(received) != len(self.channels):
            raise ValueError(
                f"the active party needs one entry per passive party, {len(self.channels)}, "
                f"got {len(received)}"
            )
        if (own is None) != (self.settings.backbone is None):
            raise ValueError(
                "the active party needs own views exactly when it has a backbone, "
                f"got own={'none' if own is None else 'some'}"
            )
        for channel, z in zip(self.channels, received, strict=True):
            if z is not None:
                channel.check(z, n)

    def _returned(self, leaf: Tensor) -> Tensor:
        """The gradient that a party gets back, row by row no longer than allowed."""
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        longest = self.settings.max_gradient_norm
        return gradient if longest is None else clip(gradient, longest)
