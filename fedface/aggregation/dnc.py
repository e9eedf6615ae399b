"""Divide and conquer (DnC), Shejwalkar & Houmansadr, NDSS 2021.

https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-optimizing-model-poisoning-attacks-and-defenses-for-federated-learning/

Colluders that share a direction stretch the cohort along it. So: centre the updates on a random
part of their coordinates, find the direction of most spread (the top right singular vector), and
leave out those that lie farthest along it; repeat on other coordinates and keep who passes every
time (Algorithm 2). The rule sees the one direction that spreads most, be it the attackers' or
that of an honest site with unusual data, and nothing across it: of two outliers of any size
without a common direction the smaller can stay.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.weights import client_weights, weighted_sum
from fedface.random import stream


def spectral_scores(rows: Tensor) -> Tensor:
    """Returns each row's squared extent along the direction in which the rows spread most.

    Args:
        rows: ``(n_clients, n_coordinates)``.

    Returns:
        ``(n_clients,)`` float64: <row - mean, v>^2 with v the top right singular vector of the
        centred rows (Algorithm 2, lines 6 to 8).
    """
    exact = rows.double()
    left, singular, _ = torch.linalg.svd(exact - exact.mean(dim=0), full_matrices=False)
    extents: Tensor = (left[:, 0] * singular[0]).square()
    return extents


class Dnc(Aggregator):
    """The plain mean of the clients that no iteration found far along its top direction.

    ``scores`` are the squared extents, averaged over the iterations. With fewer than three
    clients and no stated ``n_malicious`` all are averaged. Where the intersection over several
    iterations is empty, those who passed the most of them are kept (the paper leaves it open).

    Attributes:
        n_malicious: m, how many clients may be malicious. None, the default, needs no oracle: the
            largest minority, floor((n - 1) / 2), decided anew for each cohort; so nearly half
            are left out in clean rounds too. (The paper assumes m known and attacks with 20 %.)
        filter_share: c, each iteration leaves out floor(c * m) clients.
        n_coordinates: b, coordinates per iteration; all of them where an update has no more.
        n_iterations: How often. More of them leave out more, up to n_iterations * c * m.
    """

    name: Literal["dnc"] = "dnc"
    n_malicious: NonNegativeInt | None = None
    filter_share: Annotated[float, Field(gt=0)] = 1.0
    n_coordinates: PositiveInt = 10_000
    n_iterations: PositiveInt = 1

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Selects clients (ties: the lower client id) and averages them; keeps no state.

        Raises:
            ValueError: If every client would be left out.
        """
        n_clients, dim = cohort.updates.shape
        n_malicious = (n_clients - 1) // 2 if self.n_malicious is None else self.n_malicious
        n_removed = int(self.filter_share * n_malicious + 1e-9)
        if n_removed >= n_clients:
            raise ValueError(
                "dnc needs filter_share * n_malicious < n_clients, got "
                f"filter_share={self.filter_share}, {n_malicious=}, {n_clients=}"
            )
        scores = torch.zeros(n_clients, dtype=torch.float64)
        passed = torch.zeros(n_clients, dtype=torch.int64)
        for iteration in range(self.n_iterations):
            rng = stream(cohort.seed, "dnc", cohort.server_round, iteration)
            drawn = torch.randperm(dim, generator=rng)[: self.n_coordinates].clone()
            extents = spectral_scores(cohort.updates[:, drawn])
            passed[extents.argsort(stable=True)[: n_clients - n_removed]] += 1
            scores += extents / self.n_iterations
        trust = client_weights(cohort.n_examples, passed == passed.max(), "uniform")
        return Aggregation(weighted_sum(cohort.updates, trust), trust, scores), state
