"""AlignIns, Xu et al., CVPR 2025 (https://arxiv.org/abs/2503.07978).

Two views of an update's direction: its cosine with the global weights, and how often its largest
coordinates have the sign that most clients give them. Who deviates in either, up or down, is left
out; the others are clipped to their median length and averaged. Followed in the authors' code
(JiiahaoXU/AlignIns). There "TPR" is the share of benign clients that are kept, and "FPR" the
share of malicious clients that are kept: compare the paper's figures accordingly.

Where this module differs from that code: a measure on which all clients agree accuses nobody
(there 0 / 0 rejects everybody); an empty set of survivors does not lose the round (see
:class:`AlignIns`); the median length of an even number of survivors is the mean of the middle two
(there the lower one); batch statistics are no part of the direction.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from torch import Tensor

from fedface.aggregation.blocks import in_threads, slices
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State, global_model
from fedface.aggregation.distances import products_with, update_norms
from fedface.aggregation.signs import sign_sums
from fedface.aggregation.univariate import coordinate_median
from fedface.aggregation.weights import Weighting, client_weights, weighted_sum

ROUNDING = 1e-12
"""A spread below this, of measures within [-1, 1], is the rounding of sums and no disagreement."""


def direction_alignment(updates: Tensor, weights: Tensor, block: int | None = None) -> Tensor:
    """Returns TDA: the cosine between each update and the global weights.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        weights: ``(dim,)`` global weights that they start from.
        block: Columns per pass.

    Returns:
        ``(n_clients,)`` float64 in [-1, 1]; zero where either has no direction.
    """
    products = products_with(updates, weights, block)
    lengths = update_norms(updates, block) * update_norms(weights[None])
    return torch.where(lengths > 0, products / lengths, 0.0).clamp(-1, 1)


def principal_signs(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns each coordinate's majority sign: the sign of the sum of the clients' signs.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(dim,)`` float32 of -1, 0 (a tie) and 1.
    """
    return sign_sums(updates, block).sign_()


def sign_alignment(updates: Tensor, top_share: float) -> Tensor:
    """Returns MPSA: how much of each update's largest coordinates has the principal sign.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        top_share: Share of the coordinates that are looked at, the largest in magnitude of each
            client's own: floor(top_share * dim), at least one. Of those as large as the last one
            each counts in part.

    Returns:
        ``(n_clients,)`` float64 in [0, 1].
    """
    signs = principal_signs(updates).numpy().astype(np.int8)
    dim = len(signs)
    n_top = max(int(top_share * dim + 1e-9), 1)

    def share(row: NDArray[np.float32]) -> float:
        lengths = np.abs(row)
        lengths.partition(dim - n_top)
        limit = lengths[dim - n_top]
        larger, equal = np.zeros(2), np.zeros(2)
        for columns in slices(1, dim):
            piece = row[columns]
            agreed, length = np.sign(piece) == signs[columns], np.abs(piece)
            for found, tally in ((length > limit, larger), (length == limit, equal)):
                tally += np.count_nonzero(found), np.count_nonzero(found & agreed)
        return float(larger[1] + (n_top - larger[0]) * equal[1] / equal[0]) / n_top

    shares = list(in_threads(share, list(updates.numpy())))
    return torch.tensor(shares, dtype=torch.float64)


def median_z(values: Tensor) -> Tensor:
    """Returns each value's distance from the median in standard deviations: the MZ-score.

    Args:
        values: ``(n_clients,)`` float64 within [-1, 1].

    Returns:
        ``(n_clients,)`` float64, not negative; all zero where the values agree. The deviation is
        the population's, as in the authors' code, and is no robust one: an outlier widens it.
    """
    deviations = (values - coordinate_median(values)).abs()
    spread = values.std(correction=0)
    return deviations / spread if float(spread) > ROUNDING else torch.zeros_like(values)


class AlignIns(Aggregator):
    """Averages the clients whose direction is ordinary, clipped to their median length.

    ``trust`` is a client's share of the average, before clipping. ``scores`` are the larger of
    the two z, each over its bound: a client is kept below one.

    Two clients are equally far from their median, so fewer than three cannot be judged: they are
    averaged as they are. Where nobody passes both tests (the authors' code then sends a zero
    update) the client with the lowest score is kept alone.

    Attributes:
        top_share: Share of the coordinates whose signs are looked at.
        max_direction_z: lambda_c, bound on the z of the cosine with the global weights.
        max_sign_z: lambda_s, bound on the z of the sign alignment. At the paper's one, these
            bounds leave out about half of an honest cohort, in clean rounds too.
        weighting: How survivors weigh; the authors' code: by claimed examples.
        max_weight_ratio: Cap on claimed examples in median counts, or None.
    """

    name: Literal["align_ins"] = "align_ins"
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    max_direction_z: PositiveFloat = 1.0
    max_sign_z: PositiveFloat = 1.0
    weighting: Weighting = "examples"
    max_weight_ratio: Annotated[float, Field(ge=1)] | None = None

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the clipped average of the survivors; keeps no state.

        Raises:
            ValueError: If the cohort comes without its global model.
        """
        weights, n_clients = global_model(cohort, self.name).weights, len(cohort.client_ids)
        scores = torch.zeros(n_clients, dtype=torch.float64)
        clip = torch.ones_like(scores)
        if n_clients >= 3:
            directions = median_z(direction_alignment(cohort.updates, weights))
            signs = median_z(sign_alignment(cohort.updates, self.top_share))
            scores = torch.maximum(directions / self.max_direction_z, signs / self.max_sign_z)
        kept = scores < 1
        if not bool(kept.any()):
            kept[int(scores.argmin())] = True
        if n_clients >= 3:
            norms = update_norms(cohort.updates)
            length = coordinate_median(norms[kept])
            clip = torch.where(norms > length, length / norms, 1.0)
        trust = client_weights(cohort.n_examples, kept, self.weighting, self.max_weight_ratio)
        return Aggregation(weighted_sum(cohort.updates, trust * clip), trust, scores), state
