"""Bulyan, El Mhamdi et al., ICML 2018 (https://arxiv.org/abs/1802.07927)."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from torch import Tensor

from fedface.aggregation.blocks import Scratch, sum_by_columns
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import pairwise_squared_distances
from fedface.aggregation.krum import nearest_sums
from fedface.aggregation.order_statistics import mean_of, ranked, within


def bulyan_selection(distances: Tensor, n_byzantine: int) -> list[int]:
    """Returns the theta = n - 2f clients that Krum chooses one after another (the first step).

    Each chosen client leaves before the next choice, so later scores count fewer neighbours:
    those of the n' that remain, n' - f - 2. With f = 1 the last choice would count none; the
    paper is silent there, and we count the nearest one. (Flower, and much other code, takes the
    theta lowest of one round of scores instead.)

    Args:
        distances: ``(n_clients, n_clients)`` squared distances.
        n_byzantine: f.

    Returns:
        Indices in ascending order; everybody for f = 0.
    """
    remaining = list(range(len(distances)))
    if n_byzantine == 0:
        return remaining
    while len(remaining) > 2 * n_byzantine:
        n_neighbours = max(len(remaining) - n_byzantine - 2, 1)
        scores = nearest_sums(distances[remaining][:, remaining], n_neighbours)
        del remaining[int(scores.argsort(stable=True)[0])]
    return sorted(set(range(len(distances))) - set(remaining))


def mean_around_median(
    updates: Tensor, selected: list[int], n_kept: int, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the mean of the values closest to the median at each coordinate (the second step).

    Args:
        updates: ``(n_clients, dim)`` float32.
        selected: The clients whose median and values count.
        n_kept: beta, from 1 to the number of selected clients. Which of two equally close values
            is kept is not specified.
        block: Columns per pass.

    Returns:
        The ``(dim,)`` float32 mean, accumulated in float64, and each client's share
        ``(n_clients,)`` float64 of the values that lay within the kept range; the shares sum to
        one. Values equal to an end of the range all count, so the order of clients is no matter.
    """
    values, scratch, n = updates.numpy(), Scratch(), len(selected)
    means = np.empty(values.shape[1], np.float32)

    def average(columns: slice) -> NDArray[np.int64]:
        chosen = [values[i, columns] for i in selected]
        ordered = ranked(chosen, 0, n - 1, scratch)
        middle = scratch.exact(ordered[(n - 1) // 2]) + ordered[n // 2]
        # The nearest are neighbours in order: their window moves up while the value above it is
        # nearer than its own lowest, whose place the value above then takes.
        for lowest in range(n - n_kept):
            above = ordered[lowest + n_kept]
            nearer = scratch.exact(ordered[lowest]) + above < middle
            place = lowest % n_kept
            ordered[place] = np.where(nearer, above, ordered[place])
        window = ordered[:n_kept]
        means[columns] = mean_of(window, scratch)
        low, high = np.minimum.reduce(window), np.maximum.reduce(window)
        return within(chosen, low, high, scratch)

    counts = sum_by_columns(average, (n, len(means)), (n,), block)
    shares = torch.zeros(len(updates), dtype=torch.float64)
    shares[selected] = counts / counts.sum()
    return torch.from_numpy(means), shares


class Bulyan(Aggregator):
    """Krum selects theta = n - 2f clients; the theta - 2f values nearest the median are averaged.

    ``trust`` is a client's share of the averaged values, zero for those not selected; ``scores``
    are the Krum scores of the whole cohort, zeros below three clients. Clients weigh the same, as
    in the paper.

    Attributes:
        n_byzantine: f. None, the default, needs no oracle: the most that the paper's guarantee
            allows, floor((n - 3) / 4), decided anew for each cohort. It is zero, and Bulyan the
            plain mean, below seven clients.
    """

    name: Literal["bulyan"] = "bulyan"
    n_byzantine: NonNegativeInt | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Selects (ties: the lower client id) and averages; keeps no state.

        Raises:
            ValueError: If n < 4f + 3 for the stated ``n_byzantine``.
        """
        n_clients, n_byzantine = len(cohort.client_ids), self.n_byzantine
        if n_byzantine is None:
            n_byzantine = max((n_clients - 3) // 4, 0)
        elif n_clients < 4 * n_byzantine + 3:
            raise ValueError(
                "bulyan needs n_clients >= 4 * n_byzantine + 3, "
                f"got n_clients={n_clients}, n_byzantine={n_byzantine}"
            )
        distances = pairwise_squared_distances(cohort.updates)
        scores = torch.zeros(n_clients, dtype=torch.float64)
        if n_clients >= 3:
            scores = nearest_sums(distances, n_clients - n_byzantine - 2)
        selected = bulyan_selection(distances, n_byzantine)
        n_kept = len(selected) - 2 * n_byzantine
        return Aggregation(*mean_around_median(cohort.updates, selected, n_kept), scores), state
