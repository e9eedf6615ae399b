"""Centered clipping, Karimireddy et al., ICML 2021 (https://arxiv.org/abs/2012.10333)."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedface.aggregation.blocks import Scratch, by_columns, sum_by_columns
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.univariate import coordinate_median

CENTRE = "centered_clipping/centre"


def clipped_step(distances: Tensor, weights: Tensor, radius: float | None) -> Tensor:
    """Returns the updates' weights after one step v <- v + mean((x - v) min(1, tau / ||x - v||)).

    Args:
        distances: ``(n_clients,)`` float64 ||x - v||.
        weights: ``(n_clients,)`` float64: v is the sum of the updates times these, and of the
            starting point times what they leave to one.
        radius: tau; None is the median of ``distances``.

    Returns:
        ``(n_clients,)`` float64, none negative, at most one in sum.
    """
    limit = float(coordinate_median(distances)) if radius is None else radius
    factors = torch.where(distances > limit, limit / distances, 1.0)
    return weights * (1 - factors.mean()) + factors / len(factors)


def distances_from(updates: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """Returns the updates' ``(n_clients,)`` float64 distances from :func:`mixed_with_start`."""
    values, begin, scratch = updates.numpy(), start.numpy(), Scratch()

    def squared(columns: slice) -> NDArray[np.float64]:
        exact = scratch.exact(values[:, columns])
        exact -= _mixture(exact, begin[columns], weights.numpy())
        return np.asarray(np.vecdot(exact, exact))

    return sum_by_columns(squared, values.shape, (len(values),)).sqrt()


def mixed_with_start(updates: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """Returns v, the updates times ``weights`` plus ``start`` times what these leave to one.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        start: ``(dim,)``.
        weights: ``(n_clients,)`` float64.

    Returns:
        ``(dim,)`` float32, accumulated in float64.
    """
    values, begin, scratch = updates.numpy(), start.numpy(), Scratch()
    centre = np.empty(len(begin), np.float32)

    def mix(columns: slice) -> None:
        exact = scratch.exact(values[:, columns])
        centre[columns] = _mixture(exact, begin[columns], weights.numpy())

    by_columns(mix, values.shape)
    return torch.from_numpy(centre)


def _mixture(
    exact: NDArray[np.float64], begin: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    mixture: NDArray[np.float64] = weights @ exact + (1 - weights.sum()) * begin
    return mixture


class CenteredClipping(Aggregator):
    """The last aggregate plus the mean of the updates' differences from it, clipped in length.

    The paper's clients send momenta, which change little between rounds, and its guarantee rests
    on that. Sites here send plain updates without memory, so the last aggregate (zero before the
    first round) is a poorer centre and the rule weaker than the paper's.

    ``trust`` is the weight that each update has in the result, normalised: a clipped update
    weighs less, nobody is pruned. ``scores`` are the distances from the last centre. One client
    alone is not clipped unless the radius is stated.

    Attributes:
        radius: tau, in the unit of an update's norm. None, the default, needs no oracle: the
            median distance from the centre, so half of the clients are clipped. (The authors'
            code compares 0.1, 10 and 1000 for its gradients.)
        n_iterations: L; the paper finds one enough when the centre is good.
    """

    name: Literal["centered_clipping"] = "centered_clipping"
    radius: PositiveFloat | None = None
    n_iterations: PositiveInt = 1

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the new centre; it is the state ``centered_clipping/centre`` ``(dim,)``.

        Raises:
            ValueError: If the remembered centre is of another model.
        """
        n_clients, dim = cohort.updates.shape
        start = state.get(CENTRE, torch.zeros(dim))
        if start.shape != (dim,):
            raise ValueError(
                f"centered_clipping needs updates of dim {start.numel()}, got dim {dim}"
            )
        weights = torch.zeros(n_clients, dtype=torch.float64)
        distances = torch.zeros_like(weights)
        for _ in range(self.n_iterations):
            distances = distances_from(cohort.updates, start, weights)
            weights = clipped_step(distances, weights, self.radius)
        update = mixed_with_start(cohort.updates, start, weights)
        trust = weights / weights.sum()
        return Aggregation(update, trust, distances), {**state, CENTRE: update.clone()}
