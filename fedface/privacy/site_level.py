"""A whole site's contribution under differential privacy: clip the update, add Gaussian noise.

McMahan et al., ICLR 2018 (https://arxiv.org/abs/1710.06963) add the noise at a trusted server, to
the sum of clipped updates (:class:`PrivateMean`). Where the noise is the site's own
(:func:`private_update`), the server needs no trust and any aggregator may follow; n sites then
carry n noises, so the mean is sqrt(n) times noisier than the server's at the same epsilon.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.privacy.clipping import clip
from fedface.privacy.units import SitePrivacy


def private_update(
    update: Tensor, bound: float, noise_multiplier: float, rng: torch.Generator
) -> Tensor:
    """Returns ``clip(update, bound) + N(0, (noise_multiplier bound)^2)``, float32.

    Args:
        update: ``(dim,)`` finite.
        bound: C in Euclidean length.
        noise_multiplier: z.
        rng: Draws the noise; never used twice.
    """
    short = clip(update[None], bound)[0]
    return short + noise_multiplier * bound * torch.randn(short.shape, generator=rng)


class PrivateMean(Aggregator):
    """The noised mean of clipped updates, divided by the public size of the cohort.

    A site that does not answer counts as zero: the divisor tells nothing about who answered.

    Attributes:
        n_cohort: Sites asked in a round.
        privacy: Clip norm and randomness.
        noise_multiplier: z, of the run.
    """

    name: Literal["private_mean"] = "private_mean"
    n_cohort: PositiveInt
    privacy: SitePrivacy
    noise_multiplier: NonNegativeFloat

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns (sum of clipped updates + N(0, (z C)^2)) / n_cohort; all are trusted alike."""
        n_clients, bound = len(cohort.client_ids), self.privacy.clip
        rng = self.privacy.generator(cohort.seed, "site noise", cohort.server_round)
        total = clip(cohort.updates, bound).double().sum(0)
        noise = torch.randn(total.shape, generator=rng, dtype=torch.float64)
        update = (total + self.noise_multiplier * bound * noise) / self.n_cohort
        trust = torch.full((n_clients,), 1 / n_clients, dtype=torch.float64)
        return Aggregation(update.float(), trust), state
