"""Adaptive distribution: losses that shape noisy embeddings by their labels.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available ("adaptive adjustments on
the ... distribution of embeddings"); the losses here are candidates of our reconstruction.

The label holder computes them on the noisy z and returns the gradient, so they are post-processing
and cost no privacy of the features. They make embeddings tell more about labels: good against a
curious active party, but a passive party can then infer labels better from its own bottom model.

Each is a frozen config with ``build(dim, n_identities, bound, rng) -> nn.Module``; the module maps
``(batch, dim)`` embeddings and ``(batch,)`` int64 labels to a scalar. Batches in which a loss has
nothing to compare give zero with a zero gradient.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from fedface.config import Config


def supervised_contrastive(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns the supervised contrastive loss, Khosla et al., NeurIPS 2020, equation 2 (L_out).

    The mean over anchors that have positives, of -1 / |P(i)| sum_p log softmax over all others of
    the cosines / temperature. The paper sums over anchors; the mean does not depend on the batch.

    Args:
        z: ``(batch, dim)``; only directions count.
        labels: ``(batch,)``.
        temperature: tau, above 0.
    """
    unit = functional.normalize(z)
    logits = unit @ unit.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None]) & ~itself
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    n_positive = positive.sum(1)
    anchors = n_positive > 0
    if not bool(anchors.any()):
        return _nothing(z)
    per_anchor = -log_share.masked_fill(~positive, 0.0).sum(1)[anchors] / n_positive[anchors]
    return per_anchor.mean()


def triplet(z: Tensor, labels: Tensor, margin: float, mining: "Mining") -> Tensor:
    """Returns the mean triplet loss d(a, p) - d(a, n) + margin with mined negatives.

    Schroff et al. (FaceNet), CVPR 2015, with plain instead of squared Euclidean distances, so that
    the margin is a length like C. ``semi_hard``: over all triplets with d(a, p) < d(a, n) < d(a, p)
    + margin. ``hard``: over anchors, the farthest positive against the nearest negative, never
    below zero (Hermans et al., arXiv 1703.07737).

    Args:
        z: ``(batch, dim)``.
        labels: ``(batch,)``.
        margin: In the units of ``z``.
        mining: Which triplets count.
    """
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if mining == "hard":
        useful = (same & ~itself).any(1) & (~same).any(1)
        if not bool(useful.any()):
            return _nothing(z)
        farthest = distance.masked_fill(~same | itself, -torch.inf).amax(1)[useful]
        nearest = distance.masked_fill(same, torch.inf).amin(1)[useful]
        return (farthest - nearest + margin).clamp(min=0).mean()
    anchors, positives = (same & ~itself).nonzero(as_tuple=True)
    to_positive, to_others = distance[anchors, positives, None], distance[anchors]
    wanted = ~same[anchors] & (to_others > to_positive) & (to_others < to_positive + margin)
    if not bool(wanted.any()):
        return _nothing(z)
    return (to_positive - to_others + margin)[wanted].mean()


def lda_ratio(z: Tensor, labels: Tensor) -> Tensor:
    """Returns tr S_w / (tr S_w + tr S_b) over the batch, in [0, 1].

    S_w and S_b are the scatter within and between the classes. It grows with Fisher's ratio r = tr
    S_w / tr S_b as r / (1 + r), and stays bounded when the class means fall together. Classes with
    one record in the batch have no scatter within and are left out.

    Args:
        z: ``(batch, dim)``.
        labels: ``(batch,)``.
    """
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[index] > 1
    z, index = z[kept], index[kept]
    if len(torch.unique(index)) < 2:
        return _nothing(z)
    totals = z.new_zeros(len(counts), z.shape[1]).index_add(0, index, z)
    means = (totals / counts[:, None].clamp(min=1))[index]
    within = (z - means).square().sum()
    between = (means - z.mean(0)).square().sum()
    share: Tensor = within / (within + between).clamp(min=1e-30)
    return share


def simplex(n: int, dim: int, radius: float, rng: torch.Generator) -> Tensor:
    """Returns ``(n, dim)`` vertices of a regular simplex around zero, randomly turned.

    Equiangular, as far apart as n points of a ball can be: distance radius sqrt(2 n / (n - 1)).

    Args:
        n: At least 2.
        dim: At least n - 1, below which there is no such simplex.
        radius: The length of every vertex.
        rng: Draws the rotation.

    Raises:
        ValueError: If ``n`` or ``dim`` is too small.
    """
    if n < 2 or dim < n - 1:
        raise ValueError(
            f"a simplex needs n_identities >= 2 and dim >= n_identities - 1, "
            f"got n_identities={n}, dim={dim}"
        )
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    basis = torch.linalg.eigh(centred)[1][:, 1:]  # (n, n - 1): all but the mean's direction
    drawn = torch.randn(dim, n - 1, generator=rng, device=rng.device, dtype=torch.float64).cpu()
    vertices = basis @ torch.linalg.qr(drawn)[0].T
    return (radius * functional.normalize(vertices)).float()


class _Loss(nn.Module):
    """A loss without weights of its own."""

    def __init__(self, config: "SupervisedContrastive | Triplet | Lda", bound: float) -> None:
        super().__init__()
        self.config = config
        self.bound = bound

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Returns the scalar loss of a batch."""
        return self.config.loss(z, labels, self.bound)


class CentreLoss(nn.Module):
    """Mean squared distance to the centre of the own class, in units of C^2.

    Attributes:
        centres: ``(n_identities, dim)``: fixed vertices, or trained centres on the sphere.
        linear: Whether the distance is taken as on the sphere, 2 - 2 z.c / C^2.
    """

    centres: Tensor

    def __init__(self, centres: Tensor, bound: float, learnt: bool, linear: bool = False) -> None:
        super().__init__()
        self.bound = bound
        self.learnt = learnt
        self.linear = linear
        if learnt:
            self.centres = nn.Parameter(centres)
        else:
            self.register_buffer("centres", centres)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Returns the scalar loss of a batch."""
        centres = self.centres
        if self.learnt:
            centres = self.bound * functional.normalize(centres)
        if self.linear:
            return 2 - 2 * (z * centres[labels]).sum(1).mean() / self.bound**2
        return (z - centres[labels]).square().sum(1).mean() / self.bound**2


class NoDistribution(Config):
    """No loss on the embeddings beyond the task's."""

    name: Literal["none"] = "none"

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> None:
        """Returns None."""


class SupervisedContrastive(Config):
    """D1, supervised contrastive.

    Attributes:
        temperature: tau; 0.1 in the paper. Noise makes cosines small, so 0.5 is worth comparing.
    """

    name: Literal["supervised_contrastive"] = "supervised_contrastive"
    temperature: PositiveFloat = 0.1

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> nn.Module:
        """Returns the loss module; it has no weights."""
        return _Loss(self, bound)

    def loss(self, z: Tensor, labels: Tensor, bound: float) -> Tensor:
        """Returns :func:`supervised_contrastive`."""
        return supervised_contrastive(z, labels, self.temperature)


Mining = Literal["semi_hard", "hard"]
"""Which triplets count, see :func:`triplet`."""


class Triplet(Config):
    """D2, triplets.

    Attributes:
        margin: In units of C.
        mining: Which triplets count.
    """

    name: Literal["triplet"] = "triplet"
    margin: PositiveFloat = 1.0
    mining: Mining = "semi_hard"

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> nn.Module:
        """Returns the loss module; it has no weights."""
        return _Loss(self, bound)

    def loss(self, z: Tensor, labels: Tensor, bound: float) -> Tensor:
        """Returns :func:`triplet` with the margin times C, in units of C."""
        return triplet(z, labels, self.margin * bound, self.mining) / bound


class Etf(Config):
    """D3, fixed targets: the vertices of a simplex equiangular tight frame of radius C.

    The optimum of the utility ceiling for even classes. Papyan, Han, Donoho, PNAS 2020, describe
    that trained classifiers tend to it.

    Attributes:
        linear: Take the squared distance as it is between points of the sphere, 2 - 2 z.c / C^2.
            For embeddings on the sphere it differs by a constant when there is no noise; with noise
            the gradient is -2 c / C^2, which the noise does not enter, where that of the squared
            distance carries all of it back to the bottom model. For scale ``sphere``: elsewhere it
            asks for no length in particular.
    """

    name: Literal["etf"] = "etf"
    linear: bool = False

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> nn.Module:
        """Returns the loss module; ``rng`` turns the simplex.

        Raises:
            ValueError: If ``dim`` < ``n_identities`` - 1, where no such simplex exists: name a
                larger embedding, or ``centre``.
        """
        vertices = simplex(n_identities, dim, bound, rng)
        return CentreLoss(vertices, bound, learnt=False, linear=self.linear)


class Centre(Config):
    """D3 for any number of people: trained centres on the sphere of radius C.

    Wen et al., ECCV 2016, move centres by their own rule; here they are weights of the active
    party. It pulls only together: the task loss has to keep people apart.
    """

    name: Literal["centre"] = "centre"

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> nn.Module:
        """Returns the loss module; ``rng`` draws the centres."""
        drawn = torch.randn(n_identities, dim, generator=rng, device=rng.device).cpu()
        return CentreLoss(drawn / math.sqrt(dim), bound, learnt=True)


class Lda(Config):
    """D4, the share of the variance that lies within the classes."""

    name: Literal["lda"] = "lda"

    def build(self, dim: int, n_identities: int, bound: float, rng: torch.Generator) -> nn.Module:
        """Returns the loss module; it has no weights."""
        return _Loss(self, bound)

    def loss(self, z: Tensor, labels: Tensor, bound: float) -> Tensor:
        """Returns :func:`lda_ratio`."""
        return lda_ratio(z, labels)


AnyDistribution = Annotated[
    NoDistribution | SupervisedContrastive | Triplet | Etf | Centre | Lda,
    Field(discriminator="name"),
]
"""Every distribution loss a YAML file can name. Adding one is adding its class to this line."""


def _nothing(z: Tensor) -> Tensor:
    """Zero, with a gradient of zero in ``z``."""
    return 0.0 * z.sum()
