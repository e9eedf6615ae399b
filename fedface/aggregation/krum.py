"""Krum and Multi-Krum, Blanchard et al., NeurIPS 2017 (https://arxiv.org/abs/1703.02757)."""

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import pairwise_squared_distances
from fedface.aggregation.weights import client_weights, weighted_sum


def krum_scores(updates: Tensor, n_byzantine: int) -> Tensor:
    """Returns each client's sum of squared distances to its n - f - 2 nearest others: s(i).

    Args:
        updates: ``(n_clients, dim)`` client updates.
        n_byzantine: f, the number of clients that may be malicious.

    Returns:
        ``(n_clients,)`` float64 scores; the lower, the closer a client is to its neighbours.

    Raises:
        ValueError: If n < 2f + 3, below which the paper's guarantee does not hold.
    """
    n_clients = len(updates)
    if n_clients < 2 * n_byzantine + 3:
        raise ValueError(
            "krum needs n_clients >= 2 * n_byzantine + 3, "
            f"got n_clients={n_clients}, n_byzantine={n_byzantine}"
        )
    distances = pairwise_squared_distances(updates).fill_diagonal_(torch.inf)
    return distances.topk(n_clients - n_byzantine - 2, largest=False).values.sum(dim=1)


class MultiKrum(Aggregator):
    """The plain mean of the ``n_selected`` updates with the lowest Krum scores.

    Attributes:
        n_byzantine: f. None, the default, needs no oracle: the most that the paper's guarantee
            allows, floor((n - 3) / 2), decided anew for each cohort. It keeps little more than
            half of the clients, in clean rounds too.
        n_selected: m, how many are averaged (1 is Krum); None is n - f. The paper leaves m open
            and averages without weights, as here.
    """

    name: Literal["multi_krum"] = "multi_krum"
    n_byzantine: NonNegativeInt | None = None
    n_selected: PositiveInt | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Selects clients (ties: the lower client id) and averages them; keeps no state.

        With fewer than three clients and no stated ``n_byzantine`` nobody can be judged: all are
        averaged, with scores of zero.

        Raises:
            ValueError: If the cohort is too small for the stated ``n_byzantine`` or
                ``n_selected``.
        """
        n_clients = len(cohort.client_ids)
        n_byzantine, scores = self.n_byzantine, torch.zeros(n_clients, dtype=torch.float64)
        if n_byzantine is None:
            n_byzantine = max((n_clients - 3) // 2, 0)
        if n_clients >= 3 or self.n_byzantine is not None:
            scores = krum_scores(cohort.updates, n_byzantine)
        n_selected = n_clients - n_byzantine if self.n_selected is None else self.n_selected
        if n_selected > n_clients:
            raise ValueError(
                f"multi_krum needs n_selected <= n_clients, "
                f"got n_selected={n_selected}, n_clients={n_clients}"
            )
        selected = torch.zeros(n_clients, dtype=torch.bool)
        selected[scores.argsort(stable=True)[:n_selected]] = True
        trust = client_weights(cohort.n_examples, selected, "uniform")
        return Aggregation(weighted_sum(cohort.updates, trust), trust, scores), state
