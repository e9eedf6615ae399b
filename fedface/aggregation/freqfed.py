"""FreqFed: admit the majority cluster of the models' low frequencies.

Fereidooni et al., "FreqFed: A Frequency Analysis-Based Approach for Mitigating Poisoning Attacks
in Federated Learning", NDSS 2024 (https://arxiv.org/abs/2312.04432). Known to us from the abstract
and from summaries, not from the paper's body: the local models' weights go through a discrete
cosine transform, the low-frequency coefficients of all clients are clustered by HDBSCAN on their
cosine distances, and the largest cluster is averaged by FedAvg. No official code is known to us.

Our reconstruction, where that leaves details open:
    - each weight of two dimensions or more is one matrix, ``C_out`` rows of ``C_in * k * k`` for a
      convolution, under an orthonormal two-dimensional DCT-II; biases and normalisation, which
      are no matrices, are not looked at;
    - low are the coefficients (u, v) of an r x c matrix with u / r + v / c <= 0.5, a triangle of
      an eighth of them;
    - the coefficients of all layers stand in one vector per client;
    - HDBSCAN as in FLAME (same group): a smallest cluster of floor(n / 2) + 1, min_samples 1,
      a single cluster allowed, so that a tight minority can never be the largest cluster;
    - the cluster is averaged without weights: claimed counts buy nothing.

What it does not see: lengths within the cluster are not bounded, and as in FLAME close to half of
the clients are left out in clean rounds too.
"""

from functools import partial
from math import floor
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.fft import dct
from torch import Tensor

from fedface.aggregation.blocks import in_threads
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State, global_model
from fedface.aggregation.distances import gram
from fedface.aggregation.flame import cosine_distances, majority_cluster
from fedface.aggregation.fragments import fragment_layers
from fedface.aggregation.weights import client_weights, weighted_sum


def low_frequencies(matrix: Tensor, cutoff: float) -> Tensor:
    """Returns the low coefficients of ``matrix`` under the orthonormal DCT-II of both axes.

    Args:
        matrix: ``(r, c)``.
        cutoff: Coefficients (u, v) with u / r + v / c <= cutoff stay.

    Returns:
        ``(n_kept,)`` float64, row by row; always with the matrix's mean, (0, 0).
    """
    r, c = matrix.shape
    # u / r + v / c <= cutoff, times r c and in whole numbers: row u keeps so many of its first.
    left = floor(cutoff * r * c) - c * np.arange(r)
    n_kept = np.clip(left // r + 1, 0, c)
    rows = dct(matrix.numpy().astype(np.float64), axis=0, norm="ortho")[: np.count_nonzero(n_kept)]
    coefficients = dct(rows, axis=1, norm="ortho", overwrite_x=True)
    return torch.from_numpy(coefficients[np.arange(c) < n_kept[: len(rows), None]])


def low_frequency_distances(cohort: Cohort, weights: Tensor, cutoff: float) -> Tensor:
    """Returns the cosine distances between the local models' low frequencies.

    The transform is linear: global weights and updates go through it apart, and as in FLAME the
    models are never built. At a time, one layer's kept coefficients of all clients are held.

    Args:
        cohort: This round's.
        weights: ``(dim,)`` global weights.
        cutoff: As for :func:`low_frequencies`.

    Returns:
        ``(n_clients, n_clients)`` float64 in [0, 2].

    Raises:
        ValueError: If the model has no weight of two dimensions or more.
    """
    layers = fragment_layers(cohort.layout)
    if not layers:
        raise ValueError(
            "freqfed needs a parameter '...weight' of two dimensions or more, "
            f"got {[slot.name for slot in cohort.layout.slots]}"
        )
    n_clients = len(cohort.client_ids)
    squared_norm = torch.zeros((), dtype=torch.float64)
    cross = torch.zeros(n_clients, dtype=torch.float64)
    products = torch.zeros(n_clients, n_clients, dtype=torch.float64)
    for layer in layers:
        slot = layer.weight
        shape = (layer.n_fragments, -1)
        start = low_frequencies(weights[slot.start : slot.stop].reshape(shape), cutoff)
        rows = cohort.updates[:, slot.start : slot.stop]
        matrices = [row.reshape(shape) for row in rows]
        moves = torch.empty(n_clients, len(start), dtype=torch.float64)
        low = in_threads(partial(low_frequencies, cutoff=cutoff), matrices)
        for move, coefficients in zip(moves, low, strict=True):
            move.copy_(coefficients)
        squared_norm += start @ start
        cross += moves @ start
        products += gram(moves)
    return cosine_distances(squared_norm, cross, products)


class FreqFed(Aggregator):
    """The plain mean of the majority cluster of low frequencies.

    Attributes:
        cutoff: Where low frequencies end, as a sum of two relative frequencies: 2 keeps all, 0.5
            an eighth. Ours; the paper's number is not known to us.
    """

    name: Literal["freqfed"] = "freqfed"
    cutoff: Annotated[float, Field(gt=0, le=2)] = 0.5

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the cluster's mean; keeps no state and scores nobody.

        With fewer than three clients nobody can be judged: all are averaged.

        Raises:
            ValueError: If the cohort comes without its global model, or the model has no weight
                of two dimensions or more.
        """
        weights = global_model(cohort, self.name).weights
        admitted = majority_cluster(low_frequency_distances(cohort, weights, self.cutoff))
        trust = client_weights(cohort.n_examples, admitted, "uniform")
        return Aggregation(weighted_sum(cohort.updates, trust), trust), state
