"""A passive party: features in, clipped and noised embeddings out, gradients back in.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available; the rest is our
reconstruction of standard split learning around it. Nothing here knows a network.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from fedface import parameters
from fedface.backbones import AnyBackbone, SmallConv
from fedface.backbones.initialisation import initialised
from fedface.config import Config
from fedface.modes import evaluating
from fedface.privacy import AnyRelease, Ledger, PoissonBinomialRelease
from fedface.training.optimizers import SGD
from fedface.vertical.joint import perceptron
from fedface.vertical.momentum import momentum, restore_momentum
from fedface.vertical.scale import AnyScale, NoScale, Sphere


class PassiveSettings(Config):
    """What a passive party computes and how it shares it.

    Attributes:
        backbone: The bottom model; its ``embedding_size`` is d, the length of what is sent.
        attribute_hidden: Widths of the hidden layers of the perceptron that is the bottom model of
            a party which holds attributes instead of pictures; it has the same d.
        scale: How embeddings are fitted into the ball of radius C.
        release: Clip, noise and budget.
        optimizer: Of the bottom model and the scale.
    """

    backbone: AnyBackbone = Field(default_factory=lambda: SmallConv(embedding_size=32))
    attribute_hidden: tuple[PositiveInt, ...] = (64,)
    scale: AnyScale = Sphere()
    release: AnyRelease
    optimizer: SGD = SGD()

    @model_validator(mode="after")
    def _scale_has_a_bound(self) -> "PassiveSettings":
        if self.release.bound is None and not isinstance(self.scale, NoScale):
            raise ValueError(
                f"scale {self.scale.name} needs a release with a clip, "
                f"got release {self.release.name} without one; set scale: {{name: none}}"
            )
        return self

    @model_validator(mode="after")
    def _dimensions_agree(self) -> "PassiveSettings":
        release, dim = self.release, self.backbone.embedding_size
        if isinstance(release, PoissonBinomialRelease) and release.dim != dim:
            raise ValueError(
                f"release.dim needs to be the backbone's embedding_size, {dim}, got {release.dim}"
            )
        return self

    def build(
        self,
        image_size: int,
        n_records: int,
        rng: torch.Generator,
        n_attributes: int | None = None,
    ) -> "PassiveParty":
        """Returns a new party for square views of ``image_size`` pixels; ``rng`` fixes it.

        Args:
            image_size: The side of the views, in pixels.
            n_records: Records of the party, training and test together.
            rng: Draws the initial weights.
            n_attributes: Numbers in each record of a party that holds attributes; then
                ``image_size`` means nothing. None is a party with pictures.
        """
        dim = self.backbone.embedding_size
        if n_attributes is None:
            return PassiveParty(self.backbone.build(image_size, rng), dim, self, n_records)
        widths = (n_attributes, *self.attribute_hidden, dim)
        bottom = initialised(lambda: perceptron(widths), rng)
        return PassiveParty(bottom, dim, self, n_records)


class PassiveParty:
    """One passive party with its bottom model, its account and what it released for evaluation.

    Attributes:
        bottom: Features -> ``(batch, dim)`` embeddings.
        dim: d.
        scale: h -> u inside the ball of radius C; the identity when nothing bounds embeddings.
        settings: What it was built from.
        optimizer: Of ``bottom`` and ``scale``.
        ledger: The account, or None for releases without a guarantee.
    """

    def __init__(
        self, bottom: nn.Module, dim: int, settings: PassiveSettings, n_records: int
    ) -> None:
        bound = settings.release.bound
        self.bottom = bottom
        self.dim = dim
        self.settings = settings
        self.scale = nn.Identity() if bound is None else settings.scale.build(dim, bound)
        self.optimizer = settings.optimizer.build((self.bottom, self.scale), 1, 1)
        self.ledger = settings.release.ledger(n_records)
        self._modules = nn.ModuleDict({"bottom": self.bottom, "scale": self.scale})
        self._released = torch.zeros(n_records, dim)
        self._is_released = torch.zeros(n_records, dtype=torch.bool)
        self._pending: Tensor | None = None

    def start_round(self, server_round: int, n_rounds: int) -> None:
        """Sets the learning rate of ``server_round`` (from 1) of ``n_rounds``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.optimizer.rate(server_round, n_rounds)

    def embed(self, batch: Tensor, records: Tensor, rng: torch.Generator) -> Tensor:
        """Releases the embeddings of a training batch, and keeps what :meth:`backward` needs.

        A release whose gradient never came back is forgotten by the next one (its budget is
        spent all the same).

        Args:
            batch: ``(n, ...)`` features, on the bottom model's device.
            records: ``(n,)`` int64 which records they are, in 0..n_records - 1.
            rng: The party's secret noise stream; see :mod:`fedface.privacy.release`.

        Returns:
            ``(n, dim)`` noisy embeddings, without a graph.

        Raises:
            BudgetSpent: If a record has no release left; nothing is released then.
            ValueError: If a record is unknown, or an embedding is not finite.
        """
        self._modules.train()
        z = self._release(batch, records, rng)
        self._pending = z
        return z.detach()

    def backward(self, gradient: Tensor) -> None:
        """Takes one optimiser step with the active party's gradient with respect to z.

        The noise is a constant, so dz / du is one: straight through it, then through the clip.

        Raises:
            ValueError: If there is no release to answer to, or the gradient has another shape or
                is not finite; the weights stay as they are.
        """
        if self._pending is None:
            raise ValueError("backward needs a training release that waits for it, got none")
        if gradient.shape != self._pending.shape or not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"gradient needs shape {tuple(self._pending.shape)} and finite values, "
                f"got {tuple(gradient.shape)} with "
                f"{int((~torch.isfinite(gradient)).sum())} that are not"
            )
        pending, self._pending = self._pending, None
        self.optimizer.zero_grad(set_to_none=True)
        if pending.requires_grad:
            torch.autograd.backward(pending, gradient.to(pending))
            self.optimizer.step()

    def embed_once(self, batch: Tensor, records: Tensor, rng: torch.Generator) -> Tensor:
        """Returns one noisy embedding per record for inference: released once, then repeated.

        Repeating what was released costs nothing, a second noise would cost a second release. What
        is repeated comes from the bottom model of the time; :meth:`forget` starts anew.

        Args:
            batch: ``(n, ...)`` features of the records.
            records: ``(n,)`` int64.
            rng: The party's secret noise stream.

        Returns:
            ``(n, dim)``, in the order of ``records``.

        Raises:
            BudgetSpent: If a record that was never released for inference has no release left.
            ValueError: As for :meth:`embed`.
        """
        self._check(batch, records)
        new = torch.unique(records[~self._is_released[records]])
        if len(new):
            first = (records[None] == new[:, None]).int().argmax(1)
            with evaluating(self._modules), torch.no_grad():
                self._released[new] = self._release(batch[first], new, rng).cpu().float()
            self._is_released[new] = True
        return self._released[records].clone()

    def forget(self) -> None:
        """Forgets the embeddings released for inference: the next ones are new and cost anew."""
        self._is_released.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that a resumed party needs, by name; none of it is ever sent."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self._modules.state_dict(),
            "momentum": momentum(self.optimizer),
            "ledger": {} if self.ledger is None else self.ledger.to_tensors(),
            "inference": {"z": self._released, "is_released": self._is_released},
        }
        return {
            f"{group}.{name}": value.detach().cpu().clone()
            for group, values in groups.items()
            for name, value in values.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the party into the state that :meth:`tensors` returned.

        Raises:
            KeyError: If something is missing.
            ValueError: If shapes differ, or the account was kept for another mechanism.
        """
        if self.ledger is not None:
            self.ledger = Ledger.from_tensors(self.ledger.release, part(tensors, "ledger"))
        parameters.load(self._modules, part(tensors, "model"))
        restore_momentum(self.optimizer, part(tensors, "momentum"))
        inference = part(tensors, "inference")
        self._released.copy_(inference["z"])
        self._is_released.copy_(inference["is_released"])
        self._pending = None

    def _release(self, batch: Tensor, records: Tensor, rng: torch.Generator) -> Tensor:
        self._check(batch, records)
        u = self.scale(self.bottom(batch))
        charged = None if self.ledger is None else self.ledger.charge(records)
        z = self.settings.release.release(u, rng)
        self.ledger = charged
        return z

    def _check(self, batch: Tensor, records: Tensor) -> None:
        n_records = len(self._is_released)
        if records.shape != batch.shape[:1] or records.dtype != torch.int64:
            raise ValueError(
                f"records need shape ({len(batch)},) and dtype torch.int64, "
                f"got {tuple(records.shape)} {records.dtype}"
            )
        if len(records) and not (int(records.min()) >= 0 and int(records.max()) < n_records):
            raise ValueError(
                f"records need to lie in 0..{n_records - 1}, "
                f"got {int(records.min())}..{int(records.max())}"
            )


def part(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Returns the tensors whose name begins with ``group.``, without that beginning."""
    start = f"{group}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
