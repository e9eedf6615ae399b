"""The Poisson binomial mechanism on embeddings, released by one party: a baseline.

After PBM-VFL (Tran et al., https://arxiv.org/abs/2501.13916), which puts the Poisson binomial
mechanism (Chen, Ozgur, Kairouz, ICML 2022, https://arxiv.org/abs/2207.09916) under a secure sum
over parties; of both we had the abstracts and common knowledge of the mechanism. Each coordinate is
clipped to [-C, C] and becomes a number of ones among m random bits, each one with probability 1/2 +
theta x / C; C / (theta m) (ones - m / 2) is an unbiased estimate of x.

**What differs here.** There is no secure sum: the active party sees every party's own counts, so
nothing but the party's own randomness protects a record, and that is what is accounted: exactly
(:mod:`fedface.privacy.binomial`), over d m bits a release, all releases and all parties. PBM-VFL's
epsilon for a sum over parties is smaller for the same theta and m. What is sent is the estimate,
which says no more than the counts do.
"""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from fedface.config import Config
from fedface.privacy import binomial
from fedface.privacy.clipping import ClipNorm, check_rows
from fedface.privacy.release import Ledger, Neighbour, Spent, new_ledger


class PoissonBinomialRelease(Config):
    """Clip each coordinate to C, send a binomial count of it, account every release.

    Attributes:
        clip: C, per coordinate.
        dim: d, the length of the embeddings; the account needs it, since each coordinate is sent.
        n_trials: m, bits of each coordinate.
        theta: How far the probability of a one may be from 1/2; or None, and it follows from
            ``epsilon``. (The papers take 1/4 at most, for their bounds; the account here does not
            need that.)
        epsilon: What ``n_releases`` of one record may cost together, at ``delta`` and under
            ``neighbour``; or None, and ``theta`` says it.
        delta: At which epsilon is stated; in (0, 1).
        n_releases: T, the budget of each record, as for :class:`EmbeddingRelease`.
        neighbour: The relation that is accounted; the other is printed too.
        n_parties: K passive parties that release embeddings of the same record, accounted jointly.
    """

    name: Literal["poisson_binomial"] = "poisson_binomial"
    clip: ClipNorm = 1.0
    dim: PositiveInt
    n_trials: Annotated[int, Field(ge=1, le=1 << 20)] = 16
    theta: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    epsilon: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    n_releases: PositiveInt
    neighbour: Neighbour = "replace_one"
    n_parties: PositiveInt = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.theta is None) == (self.epsilon is None):
            raise ValueError(
                "a poisson_binomial release needs theta or epsilon, and not both, "
                f"got theta={self.theta}, epsilon={self.epsilon}"
            )
        if (n_bits := self._bits(self.n_releases)) > binomial.MOST_BITS:
            raise ValueError(
                f"a poisson_binomial release needs dim * n_trials * n_releases * n_parties <= "
                f"{binomial.MOST_BITS}, got {n_bits}"
            )
        return self

    @property
    def bound(self) -> float:
        """C sqrt(d), the length of the cube's corners: no clipped embedding is longer."""
        return self.clip * math.sqrt(self.dim)

    @property
    def noise(self) -> float:
        """C / (2 theta sqrt(m)): the standard deviation of a coordinate at most, reached at zero.

        It is the noise's sub-Gaussian constant as well, so that the length of an honest embedding
        is bounded as under Gaussian noise of this size (Hsu, Kakade, Zhang 2012, theorem 1), which
        :meth:`fedface.vertical.channel.Channel.check` relies on.
        """
        return self.clip / (2 * self.tilt * math.sqrt(self.n_trials))

    @property
    def tilt(self) -> float:
        """theta, as given or as ``epsilon`` asks for."""
        if self.theta is not None:
            return self.theta
        if self.epsilon is None:
            raise ValueError("a poisson_binomial release needs theta or epsilon, got neither")
        n_bits = self._bits(self.n_releases)
        return binomial.theta_for(self.epsilon, self.delta, n_bits, self.neighbour)

    @property
    def mechanism(self) -> tuple[float, ...]:
        """What an account is kept for: (clip, dim, n_trials, theta, n_parties)."""
        return (self.clip, self.dim, self.n_trials, self.tilt, self.n_parties)

    def release(self, h: Tensor, rng: torch.Generator) -> Tensor:
        """Returns unbiased estimates of the clipped embeddings; the gradient passes straight.

        The numbers are exactly those that counts give: no bit of ``h`` shows in their rounding.

        Args:
            h: ``(batch, dim)`` finite embeddings, on any device.
            rng: Draws the counts; advanced.

        Raises:
            ValueError: If the shape differs or a row is not finite.
        """
        check_rows(h)
        if h.shape[1] != self.dim:
            raise ValueError(
                f"a poisson_binomial release needs embeddings of dim={self.dim}, got {h.shape[1]}"
            )
        u = h.clamp(-self.clip, self.clip)
        theta = self.tilt
        chance = (0.5 + theta * (u.detach().double() / self.clip)).clamp(0.5 - theta, 0.5 + theta)
        trials = torch.full_like(chance, self.n_trials, device=rng.device)
        ones = torch.binomial(trials, chance.to(rng.device), generator=rng)
        z = (ones - self.n_trials / 2) * (self.clip / (theta * self.n_trials))
        dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
        return z.to(h.device, dtype) + (u - u.detach()).to(dtype)

    def cost(self, n_releases: int, delta: float) -> Spent:
        """Returns the epsilon of ``n_releases`` of one record at ``delta``, both neighbours."""
        n_bits, theta = self._bits(n_releases), self.tilt
        return Spent(
            binomial.epsilon(theta, n_bits, "replace_one", delta),
            binomial.epsilon(theta, n_bits, "zero_out", delta),
        )

    def ledger(self, n_records: int) -> Ledger:
        """Returns an empty ledger for records 0..n_records - 1.

        Raises:
            ValueError: If ``n_records`` is below 1.
        """
        return new_ledger(self, n_records)

    def statement(self) -> str:
        """Returns what may be said of these releases, and what may not, in one sentence."""
        cost = self.cost(self.n_releases, self.delta)
        parties = f" by {self.n_parties} parties together" if self.n_parties > 1 else ""
        return (
            f"Per-release local differential privacy for the record's own embedding, for every "
            f"fixed bottom model: each of d={self.dim} coordinates is clipped to C={self.clip:g} "
            f"and sent as a fresh count of m={self.n_trials} random bits with theta="
            f"{self.tilt:.4g} (Poisson binomial mechanism, without a secure sum), and "
            f"{self.n_releases} release(s) of one record{parties} compose (exactly, no "
            f"amplification by subsampling) to epsilon={cost.replace_one:.4g} under replace-one "
            f"and epsilon={cost.zero_out:.4g} under zero-out at delta={self.delta:g}, of which "
            f"{self.neighbour} is the accounted one; it covers neither a record's influence on "
            "other records' embeddings through the trained bottom model nor the labels, which the "
            "returned gradients carry."
        )

    def _bits(self, n_releases: int) -> int:
        """The random bits that ``n_releases`` of one record send, over all parties."""
        return self.dim * self.n_trials * n_releases * self.n_parties
