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

OURS, not in the abstracts (docs/ariba.md says why, with figures):
    - ``magnitude: expected``: updates are compared at the length that their steps explain;
    - ``sharing``: clients whose remembered residuals share a direction that the others do not are
      shut out (:mod:`fedface.aggregation.shared_direction`); this is what sees quiet colluders;
    - ``clip``: survivors longer than that are shortened; claimed example counts are capped.
``LiteralAriba`` has none of it.

What it does not see: a single quiet attacker, who has nobody to share with, and colluders who share
too little to be told from honest sites. With ``support_fraction`` at its default the outlier counts
hold for no more than a quarter of the cohort; the sharing holds for any minority.
"""

from math import sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from fedface.aggregation.blocks import in_threads
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import cosines, update_norms
from fedface.aggregation.fragments import FragmentLayer, cut, fragment_layers
from fedface.aggregation.magnitude import excess_length, explained_length
from fedface.aggregation.memory import SHUT_OUT, add_residuals, remember, rows_of
from fedface.aggregation.on_device import chosen_device
from fedface.aggregation.outlier_fragments import Detector
from fedface.aggregation.probe import Probe
from fedface.aggregation.prune import AnyPruneRule, MadCut, joined
from fedface.aggregation.shared_direction import SharedDirection
from fedface.aggregation.taking_back import take_back
from fedface.aggregation.univariate import shortest_half
from fedface.aggregation.weights import Weighting, client_weights, doubted, weighted_sum
from fedface.random import numpy_stream

MIN_CLIENTS = 3
"""Of two clients that differ, neither is the outlier."""

SHARING = "memory/sharing"
"""The key of the shared directions' scores among the layer scores, in spreads."""

PROBE = "memory/probe"
"""The key of the functional probe's scores among the layer scores, in spreads."""

NO_LAYERS = frozenset({SHARING, PROBE})
"""Keys among the layer scores that name no layer."""


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
        max_excess: A client is pruned whose update is more than so many times as long as its steps
            explain (or three spreads of the cohort, if that is more); None never prunes for length
            alone.
        clip: Whether a survivor that is longer than its steps and the cohort's spread explain is
            cut to that length, so that what stays below the outlier count stays small too.
        weighting: How survivors weigh.
        max_weight_ratio: Cap on claimed examples in median counts. Detection does not look at
            the claim, so an uncapped one would let an unsuspicious client rule the average; 4
            leaves honest sites of 2 to 3 times the median at their full weight.
        sharing: When clients that share a direction are shut out (``n_known * dim`` numbers of
            state), or None for the literal method, which does not look for that.
        probe: When clients whose models answer to small changes of the image are pruned, whatever
            their updates look like; None, the default, does not look. It needs the global model
            and costs a forward pass of a few hundred rendered faces per client.
        take_back_after: After so many rounds in a row in which a client is pruned, what it had put
            into the model before is taken out (:mod:`fedface.aggregation.taking_back`; ``n_known *
            dim`` more numbers of state). None leaves it in.
    """

    name: Literal["ariba"] = "ariba"
    n_components: PositiveInt = 8
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    support_fraction: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    prune: AnyPruneRule = MadCut()
    magnitude: Literal["raw", "expected"] = "expected"
    claim_factor: Annotated[float, Field(ge=1)] = 3.0
    length_tolerance: Annotated[float, Field(ge=1)] = 2.0
    max_excess: Annotated[float, Field(gt=1)] | None = 2.0
    clip: bool = True
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = 4.0
    sharing: SharedDirection | None = SharedDirection()
    probe: Probe | None = None
    take_back_after: PositiveInt | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the survivors' mean; scores are one at the limit of whatever rule is nearest.

        ``layer_scores`` hold the share of flagged fragments per layer and, with sharing, its
        score in spreads under ``"memory/sharing"``, with a probe its score under
        ``"memory/probe"``. With fewer than three clients
        nobody can be judged: all are averaged, the scores are zeros and no residual is added.

        Raises:
            ValueError: If the model has no layer with fragments, or ``top_m`` would prune all.
        """
        n_clients, norms = len(cohort.client_ids), update_norms(cohort.updates)
        counts = torch.zeros(n_clients, dtype=torch.float64)
        scores, pruned = counts, torch.zeros(n_clients, dtype=torch.bool)
        layers: dict[str, Tensor] = {}
        if n_clients >= MIN_CLIENTS:
            flags = self.flags(cohort, norms)
            layers = {layer: flagged.double().mean(dim=1) for layer, flagged in flags.items()}
            counts = torch.stack(list(layers.values())).mean(dim=0) if layers else counts
            spread = self.null_spread(flags)
            scores, pruned = self.prune.scores(counts, spread), self.prune(counts, spread)
            if self.max_excess is not None:
                lengths = self.lengths(cohort, norms)
                scores = torch.maximum(scores, lengths)
                pruned = joined(pruned, lengths > 1, scores)
        state = remember(state, cohort, counts, pruned)
        if self.sharing is not None:
            state, shared, shut_out = self.shut_out(state, cohort, norms)
            layers[SHARING] = shared
            scores = torch.maximum(scores, shared / self.sharing.max_z)
            pruned = joined(pruned, shut_out, scores)
        if self.probe is not None:
            state, layers[PROBE] = self.probe.judge(cohort, state)
            answering = layers[PROBE] / self.probe.max_z
            scores = torch.maximum(scores, answering)
            pruned = joined(pruned, answering > 1, scores)
        trust = client_weights(cohort.n_examples, ~pruned, self.weighting, self.max_weight_ratio)
        if self.sharing is not None:
            trust = doubted(trust, self.sharing.certainty(layers[SHARING]))
        factors = self.shortening(cohort, norms)
        update = weighted_sum(cohort.updates, trust * factors)
        if (after := self.take_back_after) is not None:
            update, state = take_back(state, cohort, update, trust, factors, pruned, after)
        return Aggregation(update, trust, scores, layers), state

    def shut_out(
        self, state: State, cohort: Cohort, norms: Tensor | None = None
    ) -> tuple[State, Tensor, Tensor]:
        """Returns the state with this round's residuals, and who shares too much with others.

        Args:
            state: As ``remember`` returned it for this round.
            cohort: This round's.
            norms: Its ``update_norms``, where they are known.

        Returns:
            The new state, ``(n_clients,)`` float64 scores in spreads, ``(n_clients,)`` bool.
        """
        if self.sharing is None:
            raise ValueError("shut_out needs sharing, got null")
        state, products = add_residuals(state, cohort, self.sharing.decay, norms)
        rows = rows_of(state, cohort)
        scores, found = self.sharing.judge(cosines(products), state[SHUT_OUT][rows])
        shut_out = state[SHUT_OUT].clone()
        shut_out[rows] = found
        return {**state, SHUT_OUT: shut_out}, scores, found

    def flags(self, cohort: Cohort, norms: Tensor | None = None) -> dict[str, Tensor]:
        """Returns layer name -> ``(n_clients, n_fragments)`` bool: which fragments are outliers.

        Layers with too few fragments to judge are left out.

        Args:
            cohort: This round's.
            norms: Its ``update_norms``, where they are known.

        Raises:
            ValueError: If the model has no layer with fragments.
        """
        layers = fragment_layers(cohort.layout)
        if not layers:
            raise ValueError(
                "ariba needs a parameter '...weight' of two dimensions or more, "
                f"got {[slot.name for slot in cohort.layout.slots]}"
            )
        norms = update_norms(cohort.updates) if norms is None else norms
        lengths = self.scale(cohort, norms)
        bound = 1.01 * float((norms / lengths).max())
        detector = Detector(self.n_components, self.quantile, self.support_fraction)

        def judged(layer: FragmentLayer) -> Tensor | None:
            rng = numpy_stream(cohort.seed, "ariba pca", cohort.server_round, layer.name)
            shape = (len(lengths), layer.n_fragments, layer.fragment_dim)

            def take(positions: slice) -> NDArray[np.float32]:
                return cut(cohort.updates, layer, positions).numpy()

            return detector.judge(take, shape, rng, lengths.numpy(), bound)

        # The largest first, so that no thread is left with one while the others wait.
        largest = sorted(layers, key=lambda layer: -layer.n_fragments * layer.fragment_dim)
        work = in_threads if chosen_device() is None else map
        found = dict(zip(largest, work(judged, largest), strict=True))
        return {layer.name: flagged for layer in layers if (flagged := found[layer]) is not None}

    def scale(self, cohort: Cohort, norms: Tensor | None = None) -> Tensor:
        """Returns the ``(n_clients,)`` float64 lengths by which updates are divided.

        Args:
            cohort: This round's.
            norms: Its ``update_norms``, where they are known.
        """
        if self.magnitude == "raw":
            return torch.ones(len(cohort.client_ids), dtype=torch.float64)
        norms = update_norms(cohort.updates) if norms is None else norms
        return explained_length(norms, cohort.n_steps, self.claim_factor, self.length_tolerance)

    def lengths(self, cohort: Cohort, norms: Tensor | None = None) -> Tensor:
        """Returns how far each update is beyond the length that its steps explain, one at most.

        Args:
            cohort: This round's.
            norms: Its ``update_norms``, where they are known.
        """
        if self.max_excess is None:
            return torch.zeros(len(cohort.client_ids), dtype=torch.float64)
        norms = update_norms(cohort.updates) if norms is None else norms
        return excess_length(norms, cohort.n_steps, self.claim_factor, self.max_excess)

    def shortening(self, cohort: Cohort, norms: Tensor | None = None) -> Tensor:
        """Returns the ``(n_clients,)`` float64 factors in (0, 1] that survivors are shortened by.

        One for an update that is no longer than the cohort's ordinary length times what its steps
        and the spread explain; longer ones are cut to that.

        Args:
            cohort: This round's.
            norms: Its ``update_norms``, where they are known.
        """
        norms = update_norms(cohort.updates) if norms is None else norms
        if not self.clip or len(norms) < MIN_CLIENTS:
            return torch.ones_like(norms)
        explained = explained_length(
            norms, cohort.n_steps, self.claim_factor, self.length_tolerance
        )
        ordinary, _ = shortest_half(norms / explained)
        allowed = ordinary * explained
        return torch.where(norms > allowed, allowed / norms, 1.0)

    def null_spread(self, flags: dict[str, Tensor]) -> float:
        """Returns the standard deviation of a clean client's count if flags were independent.

        Binomial: the share of F fragments flagged with probability p = 1 - q has variance
        p (1 - p) / F, and the L layers are averaged. Real fragments of one client are not
        independent, so this is the least spread to expect, and one where no layer was judged.
        """
        p = 1 - self.quantile
        variance = sum(p * (1 - p) / flagged.shape[1] for flagged in flags.values())
        return sqrt(variance) / len(flags) if flags else 1.0


class LiteralAriba(Ariba):
    """The abstracts to the letter, as we read them: outlier fragments are counted, no more.

    ``Ariba`` with what is ours switched off: raw magnitudes, no sharing, no shortening, claims
    uncapped, and a cut at three robust standard deviations however small the excess.
    """

    name: Literal["ariba_literal"] = "ariba_literal"  # type: ignore[assignment]
    prune: AnyPruneRule = MadCut(floor=1.0, min_excess=0.0)
    magnitude: Literal["raw", "expected"] = "raw"
    max_excess: Annotated[float, Field(gt=1)] | None = None
    clip: bool = False
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = None
    sharing: SharedDirection | None = None
