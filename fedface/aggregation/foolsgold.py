"""FoolsGold: clients whose histories point the same way share one voice.

Fung, Yoon & Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020
(https://www.usenix.org/conference/raid2020/presentation/fung), Algorithm 1; the authors' code is
DistributedML/FoolsGold. Weights come from the pairwise cosines of the clients' summed updates.

Where we differ:
    - The paper takes the cosine over the features that matter to the output layer. Sites keep
      their classification heads here, so there is no shared output layer: the cosine is taken
      over the whole update, or over the last layer of the backbone (``layers: last``). The
      paper's weighting of features by importance is left out with it.
    - The paper adds the weighted sum of SGD gradients; updates of local training are averaged, so
      the weights are divided by their sum.
    - Only the clients of this round are compared, each by all it ever sent: the paper's clients
      take part in every round.
    - Equal histories of everyone divide zero by zero in the paper: see :class:`FoolsGold`.

What it does not see: a single attacker, or attackers that differ from one another as honest
sites do. Nothing bounds an update's length, in the average or in its client's history. And it
judges relative to the least similar client: it costs honest sites weight where some of them are
more alike than others.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor

from fedface.aggregation.blocks import by_columns, remembered
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.distances import gram
from fedface.aggregation.fragments import fragment_layers
from fedface.aggregation.memory import IDS, rows_of
from fedface.aggregation.weights import weighted_sum

HISTORIES = "clients/histories"
"""The state's key of the summed updates."""

_SAME = 1e-9
"""A difference from cosine one that rounding explains."""


def add_histories(state: State, cohort: Cohort, features: Tensor) -> State:
    """Returns ``state`` with this round's updates added to each client's history.

    Args:
        state: Empty or from the last round; not modified.
        cohort: This round's.
        features: ``(n_clients, n_features)``, the part of each update that is remembered.

    Returns:
        ``clients/ids`` ``(n_known,)`` int64 ascending, and row by row beside it
        ``clients/histories`` ``(n_known, n_features)`` float32, held within its finite range.

    Raises:
        ValueError: If the remembered histories are of another model.
    """
    n_features = features.shape[1]
    known = state.get(IDS, torch.zeros(0, dtype=torch.int64))
    before = state.get(HISTORIES, torch.zeros(0, n_features))
    if before.shape[1] != n_features:
        raise ValueError(f"foolsgold needs {before.shape[1]} features, got {n_features}")
    everyone = torch.tensor(sorted({*known.tolist(), *cohort.client_ids}), dtype=torch.int64)
    new = {**state, IDS: everyone}
    old = dict(zip(torch.searchsorted(everyone, known).tolist(), before.numpy(), strict=True))
    present = dict(zip(rows_of(new, cohort).tolist(), features.numpy(), strict=True))
    histories, limit = remembered((len(everyone), n_features)), np.finfo(np.float32).max

    def add(columns: slice) -> None:
        for row, history in enumerate(histories):
            sums = history[columns]
            np.copyto(sums, old[row][columns] if row in old else 0)
            if row in present:
                with np.errstate(over="ignore"):
                    sums += present[row][columns]
                np.clip(sums, -limit, limit, out=sums)

    by_columns(add, histories.shape)
    return {**new, HISTORIES: torch.from_numpy(histories)}


def pardoned_similarities(histories: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Returns each client's largest pardoned cosine to another one.

    The cosine of i to j is lowered by v_i / v_j where j's own largest cosine v_j is above v_i:
    an honest client that resembles a Sybil resembles it less than the Sybils do each other.
    Negative cosines count as zero, as in the authors' code.

    Args:
        histories: ``(n_clients, n_features)``, or more rows than the ``chosen`` ones.
        chosen: ``(n_clients,)`` int64, which rows are compared; None for all.

    Returns:
        ``(n_clients,)`` float64 in [0, 1]; zero for a zero history or a single client.
    """
    products = gram(histories, chosen=chosen)
    norms = products.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = (products * inverse[:, None] * inverse[None, :]).fill_diagonal_(0).clamp(0, 1)
    largest = cosines.max(dim=1).values
    own, other = largest[:, None], largest[None, :]
    pardon = torch.where(other > own, own / other, 1.0)
    return (cosines * pardon).max(dim=1).values


def foolsgold_weights(similarities: Tensor, confidence: float = 1.0) -> Tensor:
    """Returns Algorithm 1's learning rates: rescaled to a largest of one, then logit-spread.

    Args:
        similarities: ``(n_clients,)`` float64, as :func:`pardoned_similarities` gives them.
        confidence: kappa.

    Returns:
        ``(n_clients,)`` float64 in [0, 1]; the least similar client gets one. All zero where
        every client is the copy of another.
    """
    rates = 1 - similarities
    most = float(rates.max())
    if most < _SAME:
        return torch.zeros_like(rates)
    return (confidence * (torch.logit(rates / most) + 0.5)).clamp(0, 1)


class FoolsGold(Aggregator):
    """The mean weighted by how little each client's history resembles another's.

    Attributes:
        confidence: kappa, how steep the logit is; one in the paper.
        layers: What is remembered and compared: whole updates, or the backbone's last layer with
            rows (its embedding layer), bias included. The state holds as many numbers per known
            client.
    """

    name: Literal["foolsgold"] = "foolsgold"
    confidence: PositiveFloat = 1.0
    layers: Literal["all", "last"] = "all"

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the weighted mean; scores are the largest pardoned cosines, in [0, 1].

        Clients of weight zero are pruned. If all weights are zero (every client copies another),
        nobody can be told apart and all weigh the same. One client alone, or two, weigh the same
        too. Claimed example counts play no part, as in the paper.

        Raises:
            ValueError: If the state is of another model, or ``layers: last`` finds no layer.
        """
        state = add_histories(state, cohort, self._features(cohort))
        scores = pardoned_similarities(state[HISTORIES], rows_of(state, cohort))
        weights = foolsgold_weights(scores, self.confidence)
        if not bool(weights.any()):
            weights = torch.ones_like(weights)
        trust = weights / weights.sum()
        return Aggregation(weighted_sum(cohort.updates, trust), trust, scores), state

    def _features(self, cohort: Cohort) -> Tensor:
        """The columns that are compared."""
        if self.layers == "all":
            return cohort.updates
        layers = fragment_layers(cohort.layout)
        if not layers:
            raise ValueError(
                "foolsgold with layers: last needs a parameter '...weight' of two dimensions or "
                f"more, got {[slot.name for slot in cohort.layout.slots]}"
            )
        slots = [slot for slot in (layers[-1].weight, layers[-1].bias) if slot is not None]
        return torch.cat([cohort.updates[:, slot.start : slot.stop] for slot in slots], dim=1)
