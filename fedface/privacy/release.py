"""What leaves a passive party: clipped embeddings under fresh Gaussian noise, and their account.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available (norm clipping of the shared
embeddings gives the guarantee, whatever data and model); the rest is our reconstruction.

z = clip_C(h) + N(0, sigma^2 I). Two neighbours are told apart in the accounting: *replace_one*, a
record becomes another one, moves z by up to 2 C; *zero_out*, a record's embedding is absent (zero),
by up to C. SecretFlow's ``GaussianEmbeddingDP`` and FeT account the second. What is claimed is
per-release local differential privacy of the record's own embedding, which holds for every fixed
bottom model, and its composition over the record's own releases. What is not claimed: privacy of
the whole training. The bottom model learns from raw records, so a record also moves other records'
later embeddings; DP-SGD at the passive party or a frozen bottom model closes that gap.

The noise is as secret as its generator. In a simulation every stream follows from the run's seed;
a real passive party draws from a seed of its own that never leaves it. A step that is repeated
with the same stream must repeat the same embedding: two embeddings under the same noise differ by
what the noise should hide. Samples are floating point and not hardened against attacks on their
last bits (Mironov, CCS 2012).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from fedface.config import Config
from fedface.privacy import gaussian
from fedface.privacy.clipping import ClipNorm, clip, standard_normal

Neighbour = Literal["replace_one", "zero_out"]
"""What differs between two neighbouring data sets: a record's content, or its presence."""


def sensitivity(clip_norm: float, neighbour: Neighbour, n_parties: int = 1) -> float:
    """Returns the largest distance of one joint release between neighbours, in Euclidean length.

    2 C sqrt(n_parties) under ``replace_one``, C sqrt(n_parties) under ``zero_out``.
    """
    one = 2 * clip_norm if neighbour == "replace_one" else clip_norm
    return gaussian.joint_sensitivity(one, n_parties)


class Spent(NamedTuple):
    """The epsilon spent so far under each neighbour relation, at one delta."""

    replace_one: float
    zero_out: float


class BudgetSpent(ValueError):
    """A release would go beyond the budget, and did not happen."""


class EmbeddingRelease(Config):
    """Clip to C, add Gaussian noise, account every release.

    Attributes:
        clip: C.
        sigma: Standard deviation of the noise per coordinate, in the embedding's units; or None,
            and it follows from ``epsilon``.
        epsilon: What ``n_releases`` of one record may cost together, at ``delta`` and under
            ``neighbour``; or None, and ``sigma`` says it.
        delta: At which epsilon is stated; in (0, 1), well below 1 / number of records.
        n_releases: T, the budget: how often one record may be released over the whole run, one
            per epoch and one for inference (a cached embedding costs nothing).
        neighbour: The relation that is accounted; the other is printed too.
        n_parties: K passive parties that release vectors of the same record, accounted jointly.
    """

    name: Literal["gaussian"] = "gaussian"
    clip: ClipNorm = 1.0
    sigma: PositiveFloat | None = None
    epsilon: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    n_releases: PositiveInt
    neighbour: Neighbour = "replace_one"
    n_parties: PositiveInt = 1

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.sigma is None) == (self.epsilon is None):
            raise ValueError(
                "a gaussian release needs sigma or epsilon, and not both, "
                f"got sigma={self.sigma}, epsilon={self.epsilon}"
            )
        return self

    @property
    def bound(self) -> float:
        """C: no shared embedding is longer."""
        return self.clip

    @property
    def noise(self) -> float:
        """The standard deviation of the noise per coordinate."""
        if self.sigma is not None:
            return self.sigma
        if self.epsilon is None:
            raise ValueError("a gaussian release needs sigma or epsilon, got neither")
        one = sensitivity(self.clip, self.neighbour, self.n_parties)
        return gaussian.sigma_for(self.epsilon, self.delta, one, self.n_releases)

    def release(self, h: Tensor, rng: torch.Generator) -> Tensor:
        """Returns ``clip(h, C) + N(0, sigma^2 I)``; the gradient passes straight through the noise.

        Args:
            h: ``(batch, dim)`` finite embeddings, on any device.
            rng: Draws the noise; advanced, so that the next release has other noise.

        Raises:
            ValueError: As :func:`clip`.
        """
        u = clip(h, self.clip)
        return u + self.noise * standard_normal(u, rng)

    def cost(self, n_releases: int, delta: float) -> Spent:
        """Returns the epsilon of ``n_releases`` of one record at ``delta``, both neighbours."""
        sigma = self.noise
        replace_one, zero_out = (
            gaussian.epsilon(
                gaussian.mu(sensitivity(self.clip, relation, self.n_parties), sigma, n_releases),
                delta,
            )
            for relation in ("replace_one", "zero_out")
        )
        return Spent(replace_one, zero_out)

    def ledger(self, n_records: int) -> "Ledger":
        """Returns an empty ledger for records 0..n_records - 1.

        Raises:
            ValueError: If ``n_records`` is below 1.
        """
        return new_ledger(self, n_records)

    @property
    def mechanism(self) -> tuple[float, ...]:
        """What an account is kept for: (clip, sigma, n_parties)."""
        return (self.clip, self.noise, self.n_parties)

    def statement(self) -> str:
        """Returns what may be said of these releases, and what may not, in one sentence."""
        cost = self.cost(self.n_releases, self.delta)
        parties = f" by {self.n_parties} parties together" if self.n_parties > 1 else ""
        return (
            f"Per-release local differential privacy for the record's own embedding, for every "
            f"fixed bottom model: each release is clipped to length C={self.clip:g} and carries "
            f"fresh Gaussian noise of standard deviation sigma={self.noise:.4g}, and "
            f"{self.n_releases} release(s) of one record{parties} compose (exact GDP, no "
            f"amplification by subsampling) to epsilon={cost.replace_one:.4g} under replace-one "
            f"(sensitivity 2C) and epsilon={cost.zero_out:.4g} under zero-out (sensitivity C) at "
            f"delta={self.delta:g}, of which {self.neighbour} is the accounted one; it covers "
            "neither a record's influence on other records' embeddings through the trained bottom "
            "model nor the labels, which the returned gradients carry."
        )


class Accounted(Protocol):
    """A mechanism that a ledger can account: :class:`EmbeddingRelease`, for example."""

    @property
    def n_releases(self) -> int:
        """How often one record may be released."""

    @property
    def delta(self) -> float:
        """At which epsilon is stated."""

    @property
    def mechanism(self) -> tuple[float, ...]:
        """The numbers that the cost of a release follows from."""

    def cost(self, n_releases: int, delta: float) -> Spent:
        """Returns the epsilon of ``n_releases`` of one record."""


@dataclass(frozen=True)
class Ledger:
    """How often each record was released, and the budget that this must not exceed.

    A value: :meth:`charge` returns the next one. It belongs into every checkpoint; a run that
    forgets it spends the budget twice. A ledger of one record counts passes over all of them.

    Attributes:
        release: The mechanism and its budget, ``n_releases`` per record.
        counts: ``(n_records,)`` int64 releases of each record so far.
    """

    release: Accounted
    counts: Tensor

    def charge(self, records: Tensor) -> "Ledger":
        """Returns the ledger after one more release of each of ``records``; call it BEFORE.

        Args:
            records: ``(batch,)`` int64 in 0..n_records - 1; a record that stands twice pays twice.

        Raises:
            BudgetSpent: If a record has no release left; nothing is charged then.
            ValueError: If a record is unknown.
        """
        n_records = len(self.counts)
        if records.ndim != 1 or records.dtype != torch.int64:
            raise ValueError(
                f"records need shape (batch,) and dtype torch.int64, "
                f"got {tuple(records.shape)} {records.dtype}"
            )
        if len(records) and not (int(records.min()) >= 0 and int(records.max()) < n_records):
            raise ValueError(
                f"records need to lie in 0..{n_records - 1}, "
                f"got {int(records.min())}..{int(records.max())}"
            )
        counts = self.counts + torch.bincount(records.cpu(), minlength=n_records)
        over = (counts > self.release.n_releases).nonzero().flatten().tolist()
        if over:
            raise BudgetSpent(
                f"the privacy budget allows n_releases={self.release.n_releases} of a record, and "
                f"{len(over)} record(s) have none left, the first is record {over[0]} after "
                f"{int(self.counts[over[0]])}; nothing was released"
            )
        return replace(self, counts=counts)

    def spent(self, delta: float | None = None) -> Spent:
        """Returns the epsilon of the record that was released most often, both neighbours.

        Args:
            delta: In (0, 1), or None for the release's own.
        """
        return self.release.cost(int(self.counts.max()), delta or self.release.delta)

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the account as named tensors, for a checkpoint."""
        return {"counts": self.counts.clone(), "mechanism": self._mechanism()}

    @classmethod
    def from_tensors(cls, release: Accounted, tensors: dict[str, Tensor]) -> "Ledger":
        """Returns the account that :meth:`to_tensors` wrote.

        Raises:
            ValueError: If it was kept for another mechanism (clip, sigma or number of parties, for
                example): its counts then do not say what was spent.
        """
        ledger = cls(release, tensors["counts"].clone())
        if not torch.equal(ledger._mechanism(), tensors["mechanism"]):
            raise ValueError(
                "a ledger needs the mechanism it was kept for, "
                f"{tuple(tensors['mechanism'].tolist())}, got {tuple(ledger._mechanism().tolist())}"
            )
        return ledger

    def _mechanism(self) -> Tensor:
        return torch.tensor(self.release.mechanism, dtype=torch.float64)


def new_ledger(release: Accounted, n_records: int) -> Ledger:
    """Returns an empty ledger of ``release`` for records 0..n_records - 1.

    Raises:
        ValueError: If ``n_records`` is below 1.
    """
    if n_records < 1:
        raise ValueError(f"a ledger needs n_records >= 1, got {n_records}")
    return Ledger(release, torch.zeros(n_records, dtype=torch.int64))
