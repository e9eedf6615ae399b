"""FLAME: admit the majority cluster of models, clip to the median length, add a little noise.

Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022
(https://arxiv.org/abs/2101.02281), Algorithm 1: HDBSCAN over the pairwise cosine distances of the
local models with a smallest cluster of floor(n / 2) + 1 and min_samples 1; S, the median length of
all updates; admitted updates clipped to S and averaged without weights; noise N(0, sigma^2) on
each coordinate with sigma = lambda S.

As in the paper, and unlike public re-implementations that cluster the last layer only or scale
the noise by each tensor's spread, whole local models (global weights plus update) are compared and
sigma is one number. "Whole" means what travels: heads are private here.

What to know before using it: the cluster ends where it falls below the majority, so HDBSCAN leaves
out close to half of the clients in clean rounds too; and the noise is as long as
lambda sqrt(dim) S, which at a million weights and lambda 0.001 is the length S of an update.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State, global_model
from fedface.aggregation.distances import gram, products_with
from fedface.aggregation.univariate import coordinate_median
from fedface.aggregation.weights import client_weights, weighted_sum
from fedface.random import stream

MIN_CLIENTS = 3
"""Of two clients that differ, neither belongs to a majority."""


def cosine_distances(squared_norm: Tensor, cross: Tensor, products: Tensor) -> Tensor:
    """Returns 1 - cos between local models w + d_i, from inner products alone.

    (w + d_i).(w + d_j) = w.w + w.d_i + w.d_j + d_i.d_j: the models need not be built.

    Args:
        squared_norm: w.w, a float64 scalar.
        cross: ``(n_clients,)`` float64, w.d_i.
        products: ``(n_clients, n_clients)`` float64, d_i.d_j.

    Returns:
        ``(n_clients, n_clients)`` float64 in [0, 2], symmetric, zero on the diagonal. A model
        of zeros has no direction: its distance to any other is one.
    """
    inner = squared_norm + (cross[:, None] + cross[None, :]) + products
    lengths = inner.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    distances = (1 - inner * inverse[:, None] * inverse[None, :]).clamp(0, 2)
    return ((distances + distances.T) / 2).fill_diagonal_(0)


def model_distances(updates: Tensor, weights: Tensor, products: Tensor) -> Tensor:
    """Returns the cosine distances between the local models, all weights together.

    Args:
        updates: ``(n_clients, dim)``.
        weights: ``(dim,)`` global weights.
        products: ``(n_clients, n_clients)``, the updates' :func:`gram`.

    Returns:
        As :func:`cosine_distances`.
    """
    squared_norm = products_with(weights[None], None)[0]
    return cosine_distances(squared_norm, products_with(updates, weights), products)


def majority_cluster(distances: Tensor) -> Tensor:
    """Returns who is in HDBSCAN's cluster of at least floor(n / 2) + 1 clients.

    With a smallest cluster above n / 2 there is one cluster at most: what is still connected at
    the least distance that connects a majority. Equal distances keep everybody together.
    (scikit-learn counts a point among its own ``min_samples`` and the authors' library does not;
    at one neighbour both give single linkage.)

    Args:
        distances: ``(n_clients, n_clients)`` float64, symmetric, zero on the diagonal.

    Returns:
        ``(n_clients,)`` bool; with fewer than three clients nobody can be judged: all True.
    """
    n_clients = len(distances)
    if n_clients < MIN_CLIENTS:
        return torch.ones(n_clients, dtype=torch.bool)
    from sklearn.cluster import HDBSCAN  # takes a second to import, in every site's process

    clustering = HDBSCAN(
        min_cluster_size=n_clients // 2 + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    return torch.from_numpy(clustering.fit_predict(distances.numpy()) >= 0)


class Flame(Aggregator):
    """The clipped mean of the majority cluster plus Gaussian noise.

    Attributes:
        noise_factor: lambda, sigma over the median length; 0.001 in the paper for images (its
            other data sets have others). Zero adds none.
    """

    name: Literal["flame"] = "flame"
    noise_factor: NonNegativeFloat = 0.001

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the step; ``trust`` is equal among the admitted; keeps no state, scores nobody.

        With fewer than three clients all are admitted; clipping (for one client, to its own
        length) and noise stay. The noise depends on the run's seed and the round only.

        Raises:
            ValueError: If the cohort comes without its global model.
        """
        products = gram(cohort.updates)
        norms = products.diagonal().sqrt()
        weights = global_model(cohort, self.name).weights
        admitted = majority_cluster(model_distances(cohort.updates, weights, products))
        trust = client_weights(cohort.n_examples, admitted, "uniform")
        median = float(coordinate_median(norms))
        clipping = torch.where(norms > median, median / norms, 1.0)
        update = weighted_sum(cohort.updates, trust * clipping)
        if self.noise_factor > 0:
            rng = stream(cohort.seed, "flame noise", cohort.server_round)
            noise = torch.randn(len(update), generator=rng)
            update += noise.mul_(self.noise_factor * median)
        return Aggregation(update, trust), state
