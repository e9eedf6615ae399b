"""RFA, the geometric median: Pillutla et al., IEEE TSP 2022 (https://arxiv.org/abs/1912.13445).

Weiszfeld's iterates are weighted means of the updates, so all that an iteration needs, the
distances of the updates from the iterate, follows from the updates' inner products. These are
computed once, about the update of median length: about the mean, which one huge update carries
away, the differences between honest updates would be lost to rounding.
"""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import centred_gram
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum

SETTLED = 1e-12
"""Iteration ends when no weight changes by more than this fraction of itself."""


def distances_from_mean(products: Tensor, weights: Tensor) -> Tensor:
    """Returns each row's distance from the weighted mean of the rows.

    Args:
        products: ``(n, n)`` float64 inner products of the rows about any one point.
        weights: ``(n,)`` float64 that sum to one.

    Returns:
        ``(n,)`` float64, never negative.
    """
    with_mean = products @ weights
    squared = products.diagonal() - 2 * with_mean + weights @ with_mean
    return squared.clamp_min(0).sqrt()


def weiszfeld_weights(
    products: Tensor, shares: Tensor, smoothing: float, max_iterations: int
) -> Tensor:
    """Returns the weights whose mean is the smoothed geometric median.

    Starts at the mean by ``shares``, as the authors' code does.

    Args:
        products: ``(n, n)`` float64 inner products of the updates about any one point.
        shares: ``(n,)`` float64, alpha, that sum to one.
        smoothing: nu: nearer than this counts as this.
        max_iterations: R.

    Returns:
        ``(n,)`` float64 that sum to one.
    """
    weights = shares
    for _ in range(max_iterations):
        before = weights
        inverse = shares / distances_from_mean(products, before).clamp_min(smoothing)
        weights = inverse / inverse.sum()
        if torch.allclose(weights, before, rtol=SETTLED, atol=0):
            break
    return weights


class GeometricMedian(Aggregator):
    """The point with the least sum of distances to the updates, as their weighted mean.

    ``trust`` is those weights: small for the far, zero for nobody. ``scores`` are the distances
    from the result. Half of the clients, less one, cannot move it far; two cannot be judged, and
    their geometric median here is their mean.

    Attributes:
        weighting: alpha. The paper weighs by examples; the default is the same for all, since a
            site that claims half of all examples would be the median.
        max_iterations: R, at most. In the paper each iteration is a round of secure aggregation,
            and its code stops after 4; here it costs n^2 operations, and iterating until the
            weights settle is what makes the bound on outliers hold: R iterations leave roughly
            (f / (n - f))^R of an outlier's distance in the result. Set 3 or 4 for the paper's.
        smoothing: nu, in the unit of an update's norm (1e-6 in the authors' implementation for
            TensorFlow Federated, 1e-5 in their first code).
    """

    name: Literal["geometric_median"] = "geometric_median"
    weighting: Weighting = "uniform"
    max_iterations: PositiveInt = 1000
    smoothing: PositiveFloat = 1e-6

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the geometric median; keeps no state."""
        everyone = torch.ones(len(cohort.client_ids), dtype=torch.bool)
        shares = client_weights(cohort.n_examples, everyone, self.weighting)
        products = centred_gram(cohort.updates)
        trust = weiszfeld_weights(products, shares, self.smoothing, self.max_iterations)
        scores = distances_from_mean(products, trust)
        return Aggregation(weighted_sum(cohort.updates, trust), trust, scores), state
