"""Norm clipping with weak differential privacy, Sun et al., 2019.

"Can You Really Backdoor Federated Learning?", https://arxiv.org/abs/1911.07963. The noise is far
below what a differential privacy guarantee needs: it gives none, and is no privacy mechanism.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import update_norms
from fedface.aggregation.univariate import coordinate_median
from fedface.aggregation.weights import weighted_sum
from fedface.random import numpy_stream


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Returns min(1, S / norm), one for a zero update.

    Args:
        norms: ``(n_clients,)`` float64 update norms.
        clip_norm: S, not negative.
    """
    return torch.where(norms > clip_norm, clip_norm / norms, 1.0)


class NormClipping(Aggregator):
    """The mean of the updates clipped in length, plus Gaussian noise on every coordinate.

    It bounds how far one client can pull; who stays within the length is not seen at all.
    ``trust`` is the clip factors, normalised, so nobody is pruned; ``scores`` are the norms.
    Clients weigh the same, whatever examples they claim. One client alone is not clipped unless
    the norm is stated.

    Attributes:
        clip_norm: S, in the unit of an update's norm. None, the default, needs no oracle: the
            cohort's median norm, so half of the clients are clipped. (BackFed's configuration
            states 3 without noise and 5 with it.)
        noise_multiplier: The noise's standard deviation per coordinate over S; zero is clipping
            alone. The noise as a whole is sqrt(dim) * noise_multiplier * S long: with the
            default and a million parameters, a tenth of S. BackFed's 0.025 at S = 5, which is
            5e-3 of S, would be five times as long as any update.
    """

    name: Literal["norm_clipping"] = "norm_clipping"
    clip_norm: PositiveFloat | None = None
    noise_multiplier: NonNegativeFloat = 1e-4

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the noisy mean; the noise is the same for the same seed and round."""
        norms = update_norms(cohort.updates)
        clip_norm = self.clip_norm
        if clip_norm is None:
            clip_norm = float(coordinate_median(norms))
        factors = clip_factors(norms, clip_norm)
        update = weighted_sum(cohort.updates, factors / len(factors))
        scale = self.noise_multiplier * clip_norm
        if scale > 0:
            rng = numpy_stream(cohort.seed, "norm clipping", cohort.server_round)
            noise = rng.standard_normal(len(update), dtype=np.float32)
            update += torch.from_numpy(noise).mul_(scale)
        return Aggregation(update, factors / factors.sum(), norms), state
