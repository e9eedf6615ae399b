"""Who shares a direction that the others do not: the other tail of ARIBA's anomaly.

Honest sites hold different people. What their updates have in common is the consensus; what is left
of an update when the consensus is taken away, its residual, is the site's own, and the residuals
of two honest sites are unaligned. Colluders implant one and the same thing, so their residuals
share a direction. Distance from the crowd cannot show that (each honest site is far from it);
closeness to a few can.

The null is absolute, by theory. Let residuals be taken against the mean of k other sites, none of
the pair itself. If the sites' own parts e_i are independent and of one length, then
cos(e_i - m, e_j - m) = (1 / k) / (1 + 1 / k) = 1 / (k + 1), for every pair. So

    rho_ij = (cos_ij - c0) / (1 - c0),   c0 = 1 / (k + 1)

is zero for honest pairs, and the share of their direction that two clients have in common
otherwise. Its spread is not known by theory: it is measured on the pairs of the core.

The core is the half of the clients that share least with anybody, found by concentration steps as
in the minimum covariance determinant (Rousseeuw & Van Driessen 1999): a minority that shares much
cannot enter it, so it can move neither the consensus nor the spread that it is judged by. All this
is ours; FoolsGold (Fung et al., RAID 2020) is the nearest published use of similarity between
clients, with neither consensus removed nor null.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from fedface.aggregation.univariate import MAD_TO_SIGMA, coordinate_median
from fedface.config import Config

MIN_CLIENTS = 6
"""A core of four leaves two to take the consensus from, for each pair of them."""

_STEPS = 20


class SharedDirection(Config):
    """When clients share too much.

    Attributes:
        max_z: A client is shut out above this many spreads of sharing.
        doubt_z: From here on a client's weight falls, evenly, to nothing at ``max_z``: whoever
            stays just inside the limit has no say. None lets everybody inside weigh in full.
        readmit_z: One that was shut out comes back at or below this many.
        decay: What is left after each round of a client's earlier residuals. (Zero looks at the
            round alone; one never forgets, and a late attack drowns in the honest rounds.)
        n_neighbours: With how many others a client shares on average, at most.
        pair_discount: What sharing with a single other counts for.
        least_spread: The least spread of honest sharing to believe in.
    """

    max_z: PositiveFloat = 5.5
    doubt_z: PositiveFloat | None = 2.5
    readmit_z: PositiveFloat = 4.0
    decay: Annotated[float, Field(ge=0, le=1)] = 0.8
    n_neighbours: PositiveInt = 3
    pair_discount: Annotated[float, Field(ge=0, le=1)] = 0.75
    least_spread: PositiveFloat = 0.012

    @model_validator(mode="after")
    def _doubt_comes_first(self) -> Self:
        if self.doubt_z is not None and self.doubt_z >= self.max_z:
            raise ValueError(f"doubt_z needs to be under max_z={self.max_z}, got {self.doubt_z}")
        return self

    def certainty(self, scores: Tensor) -> Tensor:
        """Returns what is left of each client's weight: ``(n,)`` float64 in [0, 1].

        A colluder's share of its own direction grows with the square of what it implants, so what
        weighs most is implanted at ``doubt_z``, however much more would be let in.

        Args:
            scores: ``(n,)`` from :meth:`judge`, in spreads.
        """
        if self.doubt_z is None:
            return torch.ones_like(scores)
        return ((self.max_z - scores) / (self.max_z - self.doubt_z)).clamp(0, 1)

    def judge(self, products: Tensor, shut_out: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each client's score, in spreads, and whether it is shut out.

        Args:
            products: ``(n, n)`` float64 inner products of the clients' remembered residuals.
            shut_out: ``(n,)`` bool, who was shut out before.
        """
        n = len(products)
        if n < MIN_CLIENTS:
            return torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
        found = sharing(products, self.n_neighbours)
        scores = found.scores(self.n_neighbours, self.pair_discount, self.least_spread)
        limit = torch.where(shut_out, self.readmit_z, self.max_z)
        return scores, scores > limit


@dataclass(frozen=True)
class Sharing:
    """How much the clients of one cohort share.

    Attributes:
        shares: ``(n, n)`` float64 rho, symmetric, in [-1, 1] but for a rounding; the diagonal is 0.
        core: ``(n,)`` bool, the ``n // 2 + 1`` clients that share least.
        spread: The robust standard deviation of rho over the core's pairs.
    """

    shares: Tensor
    core: Tensor
    spread: float

    def scores(self, n_neighbours: int, pair_discount: float, least_spread: float) -> Tensor:
        """Returns each client's evidence of sharing, in spreads: ``(n,)`` float64.

        The larger of two: the mean share with the ``n_neighbours`` clients that it shares most
        with, and ``pair_discount`` times the largest share, since of n - 1 honest neighbours one
        may be close by chance.

        Args:
            n_neighbours: How many; fewer where there are fewer.
            pair_discount: In [0, 1].
            least_spread: The least spread to believe in: a core of few pairs may have almost none.
        """
        off = self.shares.clone().fill_diagonal_(-torch.inf)
        nearest = off.topk(min(n_neighbours, len(off) - 1), dim=1).values
        evidence = torch.maximum(nearest.mean(dim=1), pair_discount * nearest[:, 0])
        return evidence / max(self.spread, least_spread)


def sharing(products: Tensor, n_neighbours: int = 3) -> Sharing:
    """Returns how much the rows behind a Gram matrix share.

    Args:
        products: ``(n, n)`` float64 inner products of one vector per client, n >= ``MIN_CLIENTS``;
            vectors of zero share nothing.
        n_neighbours: What the core is chosen by: the mean share with so many nearest.

    Raises:
        ValueError: If there are too few clients to take a consensus from.
    """
    n = len(products)
    if n < MIN_CLIENTS:
        raise ValueError(f"sharing needs at least {MIN_CLIENTS} clients, got {n}")
    core, size = torch.ones(n, dtype=torch.bool), n // 2 + 1
    for _ in range(_STEPS):
        off = shares(products, core).fill_diagonal_(-torch.inf)
        affinity = off.topk(n_neighbours, dim=1).values.mean(dim=1)
        new = torch.zeros(n, dtype=torch.bool)
        new[affinity.argsort(stable=True)[:size]] = True
        if bool((new == core).all()):
            break
        core = new
    rho = shares(products, core)
    inside = rho[core][:, core]
    pairs = inside[tuple(torch.triu_indices(size, size, offset=1))]
    spread = MAD_TO_SIGMA * float(coordinate_median((pairs - coordinate_median(pairs)).abs()))
    return Sharing(rho, core, spread)


def shares(products: Tensor, core: Tensor) -> Tensor:
    """Returns rho for every pair, with the consensus taken from the core without that pair.

    All from inner products: with G the Gram matrix, s = G w and K_ij = |sum of the core without
    i and j|^2, the residuals' inner product is G_ij - (s_i + s_j) / k + K_ij / k^2, each term
    without the pair's own contribution.

    Args:
        products: ``(n, n)`` float64.
        core: ``(n,)`` bool with at least three clients more than a pair takes away.

    Returns:
        ``(n, n)`` float64, zero on the diagonal and where a residual has no length.
    """
    w = core.double()
    own = products.diagonal()
    sums = products @ w
    # Row i, column j: the sum over the core without i and j, times x_i.
    with_core = sums[:, None] - (w * own)[:, None] - w[None, :] * products
    cross = w[:, None] * sums[:, None] + w[None, :] * sums[None, :]
    removed = (w * own)[:, None] + (w * own)[None, :]
    core_norm = w @ sums - 2 * cross + removed + 2 * (w[:, None] * w[None, :]) * products
    k = core.sum() - w[:, None] - w[None, :]
    inner = products - (with_core + with_core.T) / k + core_norm / k.square()
    first = own[:, None] - 2 * with_core / k + core_norm / k.square()
    lengths = (first.clamp_min(0) * first.T.clamp_min(0)).sqrt()
    least = 1e-12 * float(own.max())
    cosines = torch.where(lengths > least, inner / lengths.clamp_min(1e-300), 1 / (k + 1))
    null = 1 / (k + 1)
    return ((cosines - null) / (1 - null)).fill_diagonal_(0)
