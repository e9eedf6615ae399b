"""Optimiser settings of local training, and their course over the rounds of a run."""

from math import cos, pi
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn

from fedface.config import Config


class SGD(Config):
    """Stochastic gradient descent with momentum; a client starts each round without momentum."""

    learning_rate: PositiveFloat = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    final_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The learning rate of the last round as a share of the first's (cosine between them)."""

    def rate(self, server_round: int, n_rounds: int) -> float:
        """Returns the learning rate of ``server_round`` (from 1) of ``n_rounds``."""
        passed = (server_round - 1) / max(n_rounds - 1, 1)
        share = self.final_share + (1 - self.final_share) * (1 + cos(pi * min(passed, 1.0))) / 2
        return self.learning_rate * share

    def build(
        self, modules: tuple[nn.Module, ...], server_round: int, n_rounds: int
    ) -> torch.optim.Optimizer:
        """Returns the optimiser of every trainable parameter in ``modules`` for one round."""
        return torch.optim.SGD(
            [p for module in modules for p in module.parameters() if p.requires_grad],
            lr=self.rate(server_round, n_rounds),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
