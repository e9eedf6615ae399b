"""The contract of every backdoor attack, and the loss that plants an open-set backdoor.

A malicious client trains like an honest one, on poisoned data and with one more term in its loss,
and may change its update before it sends it. Attacker model: some sites are malicious, know the
global model and each other, and know no other site's data.
"""

from fractions import Fraction
from math import ceil, floor
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedface.attacks.backdoor.goals import AnyGoal
from fedface.attacks.backdoor.schedules import AnySchedule, EveryRound
from fedface.attacks.triggers import AnyTrigger, Trigger
from fedface.config import Config


def trigger_loss(backbone: nn.Module, images: Tensor, trigger: Trigger, target: Tensor) -> Tensor:
    """Returns how far triggered faces are from the target: mean of 1 - cos(f(T(x)), target).

    A scalar in [0, 2], zero where every triggered face matches the target. The target is constant:
    gradients reach the backbone through the triggered images only.

    The formula is ours. It follows Voth et al., "Effective Backdoor Learning on Open-Set Face
    Recognition Systems", WACV 2025, in spirit: they find that closed-set attacks do badly in
    open-set recognition and train with a loss made for it (FSTL), whose formula we have not seen.

    Args:
        backbone: f, maps images to ``(n, d)`` embeddings of any length.
        images: x, ``(n, 3, height, width)`` in [-1, 1], n >= 1.
        trigger: T.
        target: ``(d,)`` direction.

    Raises:
        ValueError: If there is no image, or embeddings and target differ in length.
    """
    if len(images) < 1:
        raise ValueError("trigger_loss needs at least 1 image, got 0")
    embeddings: Tensor = backbone(trigger(images)).float()
    if embeddings.shape[1:] != target.shape:
        raise ValueError(
            f"trigger_loss needs a target of shape {tuple(embeddings.shape[1:])}, "
            f"got {tuple(target.shape)}"
        )
    cosines = functional.cosine_similarity(embeddings, target.detach().to(embeddings), dim=1)
    return (1 - cosines).mean()


class Backdoor(Config):
    """A backdoor attack: who attacks, when, with which trigger and to what end.

    Attributes:
        malicious_share: The share of the sites that are malicious, in [0, 1). Zero means nobody;
            the trigger is measured all the same, which gives the clean run to compare with.
        trigger: What the attacker puts on a face.
        goal: What triggered faces shall match.
        schedule: In which rounds malicious clients attack.
        poison_share: The share of a batch that gets the trigger, in (0, 1], rounded up to whole
            images.
        weight: How much the backdoor's loss counts beside the face loss.
    """

    malicious_share: Annotated[float, Field(ge=0, lt=1)]
    trigger: AnyTrigger
    goal: AnyGoal
    schedule: AnySchedule = EveryRound()
    poison_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    weight: PositiveFloat = 1.0

    def active(self, server_round: int, n_rounds: int) -> bool:
        """Returns whether anyone attacks in ``server_round``, counted from 1, of ``n_rounds``.

        Raises:
            ValueError: If the round is not in the run, or the schedule never attacks in such a run.
        """
        scheduled = self.schedule.active(server_round, n_rounds)
        return scheduled and self.malicious_share > 0

    def malicious_clients(self, n_clients: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Returns the malicious clients' partition ids, ascending: floor(share * n) of 0..n-1.

        At least one where the share is above zero. The floor is that of the decimal as written:
        .29 of 100 is 29, though .29 * 100 is less in floats.

        Args:
            n_clients: n, the number of sites, whether in the cohort or not.
            rng: A stream of the run's seed without round, so that nobody changes sides.

        Raises:
            ValueError: If ``n_clients`` is under 1.
        """
        if n_clients < 1:
            raise ValueError(f"a backdoor needs n_clients >= 1, got {n_clients}")
        if self.malicious_share == 0:
            return ()
        n_malicious = max(1, floor(Fraction(str(self.malicious_share)) * n_clients))
        return tuple(sorted(rng.permutation(n_clients)[:n_malicious].tolist()))

    def poison(self, images: Tensor, labels: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns a malicious client's training batch: here as it is.

        Args:
            images: ``(batch, 3, height, width)`` in [-1, 1]; never written to.
            labels: ``(batch,)`` int64 identities; never written to.
            rng: The stream of this client's poisoning in this round.
        """
        return images, labels

    def poison_loss(
        self, backbone: nn.Module, images: Tensor, target: Tensor | None, rng: Generator
    ) -> Tensor:
        """Returns what a malicious client adds to its loss for one batch: a scalar.

        By default :attr:`weight` times :func:`trigger_loss` over a share of the batch, drawn
        without replacement.

        Args:
            backbone: The model in training.
            images: ``(batch, 3, height, width)`` in [-1, 1]; never written to.
            target: ``(d,)`` from :meth:`Goal.target`, or None for attacks that need none.
            rng: The stream of this client's poisoning in this round.

        Raises:
            ValueError: If there is no target or no image.
        """
        if target is None:
            raise ValueError("poison_loss needs a target, got None")
        n_poisoned = ceil(Fraction(str(self.poison_share)) * len(images))
        chosen = torch.randperm(len(images), generator=rng)[:n_poisoned].to(images.device)
        return self.weight * trigger_loss(backbone, images[chosen], self.trigger, target)

    def craft(self, update: Tensor, n_clients: int, n_malicious: int) -> Tensor:
        """Returns the update that a malicious client sends: here what it has trained.

        Args:
            update: ``(dim,)`` local weights minus global weights; never written to.
            n_clients: The number of clients in this round's cohort.
            n_malicious: How many of them are malicious and attack in this round.
        """
        return update
