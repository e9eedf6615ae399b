"""Multi-metrics, Huang et al., ICCV 2023 (https://arxiv.org/abs/2303.06601).

Each client gets three numbers x (cosine, Manhattan, Euclidean), each the sum of its differences
from all other clients, and the score sqrt(x' S^-1 x) with their covariance S over the cohort: a
whitening that weighs the metrics anew in every round. The few lowest scores are averaged.

x is *not* centred, as published: the score is no Mahalanobis distance from the cohort's mean, and
a client of large differences scores high in whichever metric they are. But outliers widen the
covariance that they are measured by, and where the metrics vary together it divides most.

Paper and official code (siquanhuang/Multi-metrics) disagree on the three features; both are here.

- ``global``, the paper: |w_i - w|_1, |w_i - w|_2 and cos(w_i, w) of local weights w_i to the
  global weights w, then summed differences of these. (The paper's formulas as we remember them,
  and as public re-implementations read them; we had no copy to check against.)
- ``pairwise``, the code: sums over the others of |w_i - w_j|_1, of | |w_i|_2 - |w_j|_2 | (lengths,
  not the distance) and of (1 - cos(w_i, w_j))^2, all of full weights and not of updates. It takes
  n / 2 times as many passes over the updates.

The code leaves out the root, which changes no ranking. What it counts among the weights beyond
the trained ones (batch statistics) is left out here.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedface.aggregation.blocks import Scratch, inner_products, sum_by_columns
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State, global_model
from fedface.aggregation.distances import update_norms
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum

SINGULAR = 1e-9
"""Eigenvalues of the metrics' correlation matrix below this share of the largest count as zero."""


def global_features(updates: Tensor, weights: Tensor, block: int | None = None) -> Tensor:
    """Returns each client's summed differences in its three distances to the global weights.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        weights: ``(dim,)`` global weights w that they start from.
        block: Columns per pass.

    Returns:
        ``(n_clients, 3)`` float64: cosine, Manhattan, Euclidean.
    """
    values, scratch = updates.numpy(), Scratch()

    def lengths(columns: slice) -> NDArray[np.float64]:
        exact = scratch.exact(values[:, columns])
        return np.asarray(np.abs(exact, out=exact).sum(axis=1))

    manhattan = sum_by_columns(lengths, values.shape, (len(values),), block)
    cosines = _cosines(_products(updates, weights, block))[0, 1:]
    features = torch.stack((cosines, manhattan, update_norms(updates, block)), dim=1)
    return (features[:, None] - features[None]).abs().sum(dim=1)


def pairwise_features(updates: Tensor, weights: Tensor, block: int | None = None) -> Tensor:
    """Returns each client's three differences from the other clients, summed over them.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        weights: ``(dim,)`` global weights that they start from.
        block: Columns per pass.

    Returns:
        ``(n_clients, 3)`` float64: squared cosine distance, Manhattan, difference in length.
    """
    values, scratch = updates.numpy(), Scratch()
    n = len(values)

    def differences(columns: slice) -> NDArray[np.float64]:
        exact, sums = scratch.exact(values[:, columns]), np.zeros((n, n))
        for i in range(n - 1):
            apart = np.subtract(exact[i + 1 :], exact[i])
            sums[i, i + 1 :] = np.abs(apart, out=apart).sum(axis=1)
        return sums

    manhattan = sum_by_columns(differences, values.shape, (n, n), block)
    manhattan += manhattan.T.clone()
    products = _products(updates, weights, block)
    angles = (1 - _cosines(products)[1:, 1:]).square().fill_diagonal_(0)
    lengths = products.diagonal()[1:].sqrt()
    spans = (lengths[:, None] - lengths[None]).abs()
    return torch.stack((angles, manhattan, spans), dim=2).sum(dim=1)


def whitened_scores(features: Tensor) -> Tensor:
    """Returns sqrt(x' S^-1 x) of each row x, uncentred, with S the rows' sample covariance.

    The inverse is taken of the correlation matrix (the same number, without the metrics' units,
    which differ by ten orders of magnitude) and is a pseudo-inverse: a metric on which all agree,
    and a combination of metrics that never varies (three clients or fewer), are left out.

    Args:
        features: ``(n_clients, 3)`` float64, n >= 2.

    Returns:
        ``(n_clients,)`` float64, finite; all zero where no metric varies.
    """
    largest = features.abs().amax(dim=0)
    features = features / torch.where(largest > 0, largest, 1.0)
    spread = features.std(dim=0)
    varying = spread > SINGULAR
    if not bool(varying.any()):
        return torch.zeros(len(features), dtype=torch.float64)
    scaled = features[:, varying] / spread[varying]
    correlation = torch.cov(scaled.T).reshape(scaled.shape[1], -1)
    inverse: Tensor = torch.linalg.pinv(correlation, rtol=SINGULAR, hermitian=True)
    return ((scaled @ inverse) * scaled).sum(dim=1).clamp_min(0).sqrt()


class MultiMetrics(Aggregator):
    """Averages the clients with the lowest scores; no bound: most are left out in every round.

    Two clients differ from each other alike, so fewer than three cannot be judged: all are
    averaged, with scores of zero.

    Attributes:
        features: ``global`` as in the paper or ``pairwise`` as in the official code.
        keep_share: p, the share of clients kept: floor(p * n), at least one. The code has 0.3.
        weighting: How survivors weigh; paper and code: by claimed examples.
        max_weight_ratio: Cap on claimed examples in median counts, or None.
    """

    name: Literal["multi_metrics"] = "multi_metrics"
    features: Literal["global", "pairwise"] = "global"
    keep_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Selects clients (ties: the lower client id) and averages them; keeps no state.

        Raises:
            ValueError: If the cohort comes without its global model.
        """
        weights, n_clients = global_model(cohort, self.name).weights, len(cohort.client_ids)
        kept = torch.ones(n_clients, dtype=torch.bool)
        scores = torch.zeros(n_clients, dtype=torch.float64)
        if n_clients >= 3:
            features = global_features if self.features == "global" else pairwise_features
            scores = whitened_scores(features(cohort.updates, weights))
            n_kept = max(int(self.keep_share * n_clients + 1e-9), 1)
            kept[scores.argsort(stable=True)[n_kept:]] = False
        trust = client_weights(cohort.n_examples, kept, self.weighting, self.max_weight_ratio)
        return Aggregation(weighted_sum(cohort.updates, trust), trust, scores), state


def _products(updates: Tensor, weights: Tensor, block: int | None) -> Tensor:
    """Inner products ``(1 + n, 1 + n)`` between the global weights and all local weights."""
    values, start, scratch = updates.numpy(), weights.numpy(), Scratch()
    n = len(values)

    def products(columns: slice) -> NDArray[np.float64]:
        local = scratch.array("local", (1 + n, len(start[columns])))
        np.copyto(local, start[columns])
        local[1:] += values[:, columns]
        return inner_products(local)

    return sum_by_columns(products, values.shape, (1 + n, 1 + n), block)


def _cosines(products: Tensor) -> Tensor:
    """Cosines from inner products; zero where a vector has no direction."""
    norms = products.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return (products * inverse[:, None] * inverse[None]).clamp(-1, 1)
