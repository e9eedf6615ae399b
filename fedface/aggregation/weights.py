"""How much each surviving client weighs in the server's average, and that average.

A client's example count is its own claim. Taken at its word, one site that claims ten million
images *is* the global model. A cap of ``max_weight_ratio`` (c) times the cohort's median count
bounds that: at least half of the clients count as many examples as the median, so whatever one
client claims, its weight is at most c / (c + ceil(n / 2) - 1) of a cohort of n in which nobody is
pruned. (With c = 4 and n = 20: 0.31 at the very worst, 0.17 where the others are equal.)
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedface.aggregation.blocks import Scratch, by_columns
from fedface.aggregation.on_device import chosen_device, weighted_sum_on
from fedface.aggregation.univariate import coordinate_median

Weighting = Literal["examples", "uniform"]
"""Whether a client weighs as many examples as it claims, or as much as any other."""


def client_weights(
    n_examples: Tensor,
    survivors: Tensor,
    weighting: Weighting = "examples",
    max_weight_ratio: float | None = None,
) -> Tensor:
    """Returns each client's share of the average; the pruned get exactly zero.

    Args:
        n_examples: ``(n_clients,)`` claimed example counts, none negative.
        survivors: ``(n_clients,)`` bool, True for the clients that are averaged.
        weighting: By claimed examples, or the same for every survivor.
        max_weight_ratio: Counts above this many times the median count (over all clients, the
            pruned included: they cannot choose the median while they are a minority) are lowered
            to it; None takes every claim at its word.

    Returns:
        ``(n_clients,)`` float64 that sums to one. Where no survivor has an example left, the
        survivors weigh the same.

    Raises:
        ValueError: If nobody survives or a count is negative.
    """
    if not bool(survivors.any()):
        raise ValueError(f"weights need at least one survivor, got 0 of {len(survivors)}")
    if bool((n_examples < 0).any()):
        raise ValueError(f"weights need n_examples >= 0, got {n_examples.tolist()}")
    uniform = survivors.double()
    counts = n_examples.double()
    if max_weight_ratio is not None:
        counts = counts.clamp_max(max_weight_ratio * float(coordinate_median(counts)))
    counts = counts * uniform
    if weighting == "uniform" or float(counts.sum()) == 0:
        counts = uniform
    return counts / counts.sum()


def doubted(trust: Tensor, certainty: Tensor) -> Tensor:
    """Returns ``trust`` times ``certainty``, both ``(n,)`` float64, with sum one again.

    Where nothing would be left, the trust stays as it was.
    """
    left = trust * certainty
    total = float(left.sum())
    return left / total if total > 0 else trust


def weighted_sum(updates: Tensor, trust: Tensor) -> Tensor:
    """Returns the sum of the rows of ``updates`` times ``trust``, accumulated in float64.

    Rows of zero trust are left out, not multiplied: whatever they hold, it cannot arrive.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        trust: ``(n_clients,)`` float64 weights.

    Returns:
        ``(dim,)`` float32.
    """
    if (device := chosen_device()) is not None:
        return weighted_sum_on(device, updates, trust)
    used, values, scratch = trust.nonzero().squeeze(1).tolist(), updates.numpy(), Scratch()
    weights, total = trust[used].numpy(), np.empty(values.shape[1], np.float32)

    def add(columns: slice) -> None:
        exact = scratch.array("exact", (len(used), len(total[columns])))
        for row, client in zip(exact, used, strict=True):
            np.copyto(row, values[client, columns])
        total[columns] = weights @ exact

    by_columns(add, (len(used), len(total)))
    return torch.from_numpy(total)
