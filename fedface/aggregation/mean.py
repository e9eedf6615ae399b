"""FedAvg: the (weighted) mean, McMahan et al., AISTATS 2017 (https://arxiv.org/abs/1602.05629)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum


class Mean(Aggregator):
    """Averages all updates: no defence, and what every defence is compared with.

    Attributes:
        weighting: By claimed example counts (the paper's n_k / n) or the same for all.
        max_weight_ratio: Cap on a claimed count, in median counts of the cohort; None, the
            default, is plain FedAvg, in which one lying client can rule.
    """

    name: Literal["mean"] = "mean"
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the mean; nobody is scored, and the state stays as it is."""
        everyone = torch.ones(len(cohort.client_ids), dtype=torch.bool)
        trust = client_weights(cohort.n_examples, everyone, self.weighting, self.max_weight_ratio)
        return Aggregation(weighted_sum(cohort.updates, trust), trust), state
