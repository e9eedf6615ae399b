"""ARIBA: prune the clients whose updates have the most outlier fragments.

Mi, Guan & Zhou, "ARIBA: Towards Accurate and Robust Identification of Backdoor Attacks in
Federated Learning", arXiv 2202.04311 (v1, 2022); v2 (2023, with Sun): "Identifying Backdoor
Attacks in Federated Learning via Anomaly Detection". Only the abstracts were available to us. No
number, model, threshold or data set of the paper is known here, and none is claimed.

SEEN in the abstracts:
    - backdoors show in the filters of CNN layers; unsupervised anomaly detection on pre-processed
      filters gives an anomaly score per client; the most suspicious are identified (v1);
    - embedding a backdoor changes magnitude and orientation of the gradients; gradients are cut
      into fragment vectors of small portions of the parameters; anomaly detection locates
      distributionally skewed fragments; participants with the most outliers are pruned (v2).

INFERRED, our reconstruction:
    - fragment = one filter's, or output neuron's, slice of the client update, bias included;
    - pre-processing = centring and scaling each position by median and MAD over clients, then a
      randomised PCA of the layer's pooled fragments;
    - anomaly = robust Mahalanobis distance over a chi-square quantile;
    - count = the flagged share of a layer's fragments, averaged over layers;
    - cut = a MAD z-score with two floors (``prune: {name: mad}``), or the m largest (``top_m``);
    - survivors are averaged by claimed examples, claims capped.

OURS, not in the abstracts: ``magnitude: expected`` (updates are compared at the length that
their number of steps explains; ``raw`` is the literal method) and ``memory``.

What it does not see: in our own prototype a *quiet* backdoor (poisoned data, no scaling) among
face-recognition sites with disjoint people leaves no outlier fragments. It sees attackers that
deviate in magnitude, or in some filters more than honest sites do; and, with ``support_fraction``
at its default, no more than a quarter of them.
"""

from math import sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import update_norms
from fedface.aggregation.fragments import cut, fragment_layers
from fedface.aggregation.magnitude import explained_length
from fedface.aggregation.memory import RESIDUALS, add_residuals, affinity, remember, rows_of
from fedface.aggregation.outlier_fragments import Detector
from fedface.aggregation.prune import AnyPruneRule, MadCut
from fedface.aggregation.univariate import robust_z
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum
from fedface.random import numpy_stream

MIN_CLIENTS = 3
"""Of two clients that differ, neither is the outlier."""

AFFINITY = "memory/affinity"
"""The key of the residual affinity among the layer scores; it does not prune."""


class Ariba(Aggregator):
    """FedAvg over the clients that do not have too many outlier fragments.

    Attributes:
        n_components: r, principal components per layer; fewer where a layer's pooled fragments
            do not carry them (five points each).
        quantile: q: a fragment is an outlier if MD^2 > chi2_r(q).
        support_fraction: h / n of the robust scatter: the share of fragments taken for honest.
        prune: Whom to remove, given the counts.
        magnitude: ``"expected"`` divides updates by the length that their steps and the
            cohort's spread explain before comparing them; ``"raw"`` compares them as they come.
        claim_factor: With ``"expected"``: the most that claimed steps can excuse, as a factor
            around the median. (Honest large sites were seen to send 2 to 3 times the length.)
        length_tolerance: With ``"expected"``: the most that the cohort's own spread of lengths
            around that can excuse, as a factor; one excuses none of it.
        weighting: How survivors weigh.
        max_weight_ratio: Cap on claimed examples in median counts. Detection does not look at
            the claim, so an uncapped one would let an unsuspicious client rule the average; 4
            leaves honest sites of 2 to 3 times the median at their full weight.
        memory: Whether to add up residuals over rounds (``n_known * dim`` numbers of state) and
            record their affinity.
    """

    name: Literal["ariba"] = "ariba"
    n_components: PositiveInt = 8
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    support_fraction: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    prune: AnyPruneRule = MadCut()
    magnitude: Literal["raw", "expected"] = "expected"
    claim_factor: Annotated[float, Field(ge=1)] = 3.0
    length_tolerance: Annotated[float, Field(ge=1)] = 2.0
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = 4.0
    memory: bool = False

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the survivors' mean; scores are the robust z of the outlier counts.

        ``layer_scores`` hold the share of flagged fragments per layer and, with memory, the
        affinity of the residuals under ``"memory/affinity"``. With fewer than three clients
        nobody can be judged: all are averaged, the scores are zeros and no residual is added.

        Raises:
            ValueError: If the model has no layer with fragments, or ``top_m`` would prune all.
        """
        n_clients = len(cohort.client_ids)
        counts = torch.zeros(n_clients, dtype=torch.float64)
        scores, pruned = counts, torch.zeros(n_clients, dtype=torch.bool)
        shares: dict[str, Tensor] = {}
        if n_clients >= MIN_CLIENTS:
            flags = self.flags(cohort)
            shares = {layer: flagged.double().mean(dim=1) for layer, flagged in flags.items()}
            counts = torch.stack(list(shares.values())).mean(dim=0) if shares else counts
            spread = self.null_spread(flags)
            scores, pruned = robust_z(counts, spread), self.prune(counts, spread)
        state = remember(state, cohort, counts, pruned)
        if self.memory and n_clients >= MIN_CLIENTS:
            state = add_residuals(state, cohort)
            shares[AFFINITY] = affinity(state[RESIDUALS])[rows_of(state, cohort)]
        trust = client_weights(cohort.n_examples, ~pruned, self.weighting, self.max_weight_ratio)
        update = weighted_sum(cohort.updates, trust)
        return Aggregation(update, trust, scores, shares), state

    def flags(self, cohort: Cohort) -> dict[str, Tensor]:
        """Returns layer name -> ``(n_clients, n_fragments)`` bool: which fragments are outliers.

        Layers with too few fragments to judge are left out.

        Raises:
            ValueError: If the model has no layer with fragments.
        """
        layers = fragment_layers(cohort.layout)
        if not layers:
            raise ValueError(
                "ariba needs a parameter '...weight' of two dimensions or more, "
                f"got {[slot.name for slot in cohort.layout.slots]}"
            )
        scale = self.scale(cohort).float()[:, None, None]
        detector = Detector(self.n_components, self.quantile, self.support_fraction)
        flags = {}
        for layer in layers:
            rng = numpy_stream(cohort.seed, "ariba pca", cohort.server_round, layer.name)
            flagged = detector.flags(cut(cohort.updates, layer) / scale, rng)
            if flagged is not None:
                flags[layer.name] = flagged
        return flags

    def scale(self, cohort: Cohort) -> Tensor:
        """Returns the ``(n_clients,)`` float64 lengths by which updates are divided."""
        if self.magnitude == "raw":
            return torch.ones(len(cohort.client_ids), dtype=torch.float64)
        return explained_length(
            update_norms(cohort.updates), cohort.n_steps, self.claim_factor, self.length_tolerance
        )

    def null_spread(self, flags: dict[str, Tensor]) -> float:
        """Returns the standard deviation of a clean client's count if flags were independent.

        Binomial: the share of F fragments flagged with probability p = 1 - q has variance
        p (1 - p) / F, and the L layers are averaged. Real fragments of one client are not
        independent, so this is the least spread to expect, and one where no layer was judged.
        """
        p = 1 - self.quantile
        variance = sum(p * (1 - p) / flagged.shape[1] for flagged in flags.values())
        return sqrt(variance) / len(flags) if flags else 1.0
