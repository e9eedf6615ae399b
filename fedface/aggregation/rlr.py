"""RLR: the server walks backwards where too few clients agree on the direction.

Ozdayi, Kantarcioglu & Gel, "Defending Against Backdoors in Federated Learning with Robust
Learning Rate", AAAI 2021 (https://arxiv.org/abs/2007.03767): per coordinate, the server's learning
rate is eta where |sum_k sign(update_k)| >= theta, and -eta elsewhere. The aggregate it multiplies
is FedAvg's, as in the authors' code by default.

What it does not see: signs are counted, lengths are not bounded, so one long update still rules
the coordinates in which enough others happen to agree, and its reverse rules the rest. Where
honest sites disagree (disjoint people, late rounds) it undoes their work too.
"""

from math import sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.signs import sign_sums
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum


def sign_agreement(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns how many clients more move a coordinate one way than the other.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(dim,)`` float32: |sum of signs|, from zero to n_clients; sign(0) is 0.
    """
    return sign_sums(updates, block).abs_()


def default_threshold(n_clients: int) -> float:
    """Returns min(n, 4 sqrt(n / 10)): theta without an oracle.

    Ours, through both points of the paper's experiments (4 of 10 agents, 8 of 40). The sum of n
    random signs has the standard deviation sqrt(n), so theta is 1.26 of these at any n. No more
    than n, above which even unanimous coordinates would be reversed (n = 1).
    """
    return min(n_clients, 4 * sqrt(n_clients / 10))


class Rlr(Aggregator):
    """FedAvg with the sign reversed in the coordinates on which too few clients agree.

    Attributes:
        threshold: theta, in clients. None, the default, is :func:`default_threshold`.
        weighting: By claimed example counts, as in the paper, or the same for all. (A sign counts
            one whatever is claimed.)
        max_weight_ratio: Cap on a claimed count, in median counts of the cohort; None takes
            claims at their word, as the paper does.
    """

    name: Literal["rlr"] = "rlr"
    threshold: PositiveFloat | None = None
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the mean with some coordinates reversed; keeps no state.

        ``trust`` is the mean's weights: the rule judges coordinates, not clients, so nobody is
        pruned or scored. One client alone, or two that agree everywhere, pass unchanged.

        Raises:
            ValueError: If the stated threshold is above the number of clients.
        """
        n_clients = len(cohort.client_ids)
        threshold = default_threshold(n_clients) if self.threshold is None else self.threshold
        if threshold > n_clients:
            raise ValueError(f"rlr needs threshold <= n_clients, got {threshold=}, {n_clients=}")
        everyone = torch.ones(n_clients, dtype=torch.bool)
        trust = client_weights(cohort.n_examples, everyone, self.weighting, self.max_weight_ratio)
        mean = weighted_sum(cohort.updates, trust)
        opposed = sign_agreement(cohort.updates) < threshold
        update = mean.numpy()
        np.negative(update, out=update, where=opposed.numpy())
        return Aggregation(mean, trust), state
