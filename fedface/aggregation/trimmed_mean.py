"""Coordinate-wise trimmed mean, Yin et al., ICML 2018 (https://arxiv.org/abs/1803.01498)."""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedface.aggregation.blocks import Scratch, sum_by_columns
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.on_device import chosen_device, trimmed_on
from fedface.aggregation.order_statistics import mean_of, ranked, within


def trimmed_mean(
    updates: Tensor, n_trimmed: int, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the mean of what lies between the extremes at each coordinate (definition 2).

    Args:
        updates: ``(n_clients, dim)`` float32 client updates.
        n_trimmed: How many of the smallest, and how many of the largest values are dropped.
        block: Columns per pass.

    Returns:
        The ``(dim,)`` float32 mean, accumulated in float64, and each client's share
        ``(n_clients,)`` float64 of the values that lay within the kept range; the shares sum to
        one. Values equal to an end of the range all count, so the order of clients is no matter.

    Raises:
        ValueError: If nothing would be left.
    """
    n_clients = len(updates)
    if not 0 <= 2 * n_trimmed < n_clients:
        raise ValueError(
            "trimmed_mean needs 0 <= 2 * n_trimmed < n_clients, "
            f"got n_trimmed={n_trimmed}, n_clients={n_clients}"
        )
    if (device := chosen_device()) is not None:
        middle, n_within = trimmed_on(device, updates, n_trimmed)
        return middle, n_within / n_within.sum()
    values, scratch = updates.numpy(), Scratch()
    means = np.empty(values.shape[1], np.float32)

    def trim(columns: slice) -> NDArray[np.int64]:
        kept = ranked(values[:, columns], n_trimmed, n_clients - n_trimmed - 1, scratch)
        means[columns] = mean_of(kept, scratch)
        return within(values[:, columns], kept[0], kept[-1], scratch)

    n_kept = sum_by_columns(trim, values.shape, (n_clients,), block)
    return torch.from_numpy(means), n_kept / n_kept.sum()


class TrimmedMean(Aggregator):
    """Drops the smallest and the largest values of each coordinate and averages the rest.

    Clients are not judged as such: there are no scores, and ``trust`` is a client's share of the
    values that were kept. It is near 1 / n for an ordinary client and zero for one whose every
    value was dropped. Clients weigh the same, whatever examples they claim, as in the paper.

    Attributes:
        beta: Share of clients dropped at each end; the paper needs it to be at least the share
            of attackers. The count is floor(beta * n) in floating point, as Flower and SciPy
            derive it; below n = 1 / beta it is zero, and the rule the plain mean.
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the trimmed mean; keeps no state."""
        n_trimmed = int(self.beta * len(cohort.client_ids))
        return Aggregation(*trimmed_mean(cohort.updates, n_trimmed)), state
