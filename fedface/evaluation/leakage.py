"""What an attack found out, against what anyone could have said without it.

A reconstruction is judged by structure (SSIM) and by identity: does an independent recogniser,
trained on other people, find the right person in it? Both stand beside the same figure for a flat
grey picture, which shows nothing and scores all the same; the difference is the *lift*. A pixel
error alone (PSNR) is never reported: a blurred mean face has a good one.

Labels stand beside the most frequent label, memberships beside a coin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedface.evaluation.intervals import identity_weights
from fedface.evaluation.scores import cosine_scores
from fedface.evaluation.ssim import ssim

Embedder = Callable[[Tensor], NDArray[np.float32]]
"""Images ``(n, 3, h, w)`` in [-1, 1] -> ``(n, dim)`` unit embeddings, independently trained."""


@dataclass(frozen=True)
class Gallery:
    """Other photographs of the people, as the independent recogniser sees them.

    Attributes:
        embeddings: ``(n, dim)`` of length one; none of a picture that is attacked.
        identities: ``(n,)`` int64.
    """

    embeddings: NDArray[np.float32]
    identities: NDArray[np.int64]


@dataclass(frozen=True)
class InversionLeakage:
    """How much of the pictures came back.

    Attributes:
        ssim: Mean structural similarity to the true pictures.
        grey_ssim: The same of a flat grey picture.
        rank_one: Share of reconstructions whose nearest gallery picture shows the right person.
        grey_rank_one: The same of a flat grey picture.
        true_rank_one: The same of the true pictures: what the recogniser can do at all.
        lift: ``rank_one - grey_rank_one``.
        lift_low: Lower end of its 95 % interval, by bootstrap over people.
        lift_high: Upper end.
        n: Pictures.
        n_identities: People.
    """

    ssim: float
    grey_ssim: float
    rank_one: float
    grey_rank_one: float
    true_rank_one: float
    lift: float
    lift_low: float
    lift_high: float
    n: int
    n_identities: int


@dataclass(frozen=True)
class LabelLeakage:
    """How many labels came back.

    Attributes:
        accuracy: Share of records whose label was inferred rightly.
        majority: The share of the most frequent label: what a constant guess gets.
        lift: ``accuracy - majority``.
        n: Records.
    """

    accuracy: float
    majority: float
    lift: float
    n: int


def inversion_leakage(
    reconstructed: Tensor,
    originals: Tensor,
    identities: NDArray[np.int64],
    gallery: Gallery,
    embed: Embedder,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
) -> InversionLeakage:
    """Returns structure and identity of reconstructions, beside those of a flat grey picture.

    Args:
        reconstructed: ``(n, 3, h, w)`` in [-1, 1].
        originals: The true pictures, of the same shape.
        identities: ``(n,)`` whom they show.
        gallery: Other photographs of the same people, and maybe of more.
        embed: The independent recogniser, trained on none of these people.
        rng: Draws the bootstraps.
        n_bootstrap: How many, at least 40.

    Raises:
        ValueError: If shapes differ, there is no picture, or a person is not in the gallery.
    """
    if reconstructed.shape != originals.shape or len(originals) != len(identities):
        raise ValueError(
            "inversion_leakage needs one reconstruction and one identity per picture, got "
            f"{tuple(reconstructed.shape)}, {tuple(originals.shape)} and {len(identities)}"
        )
    if len(originals) < 1 or n_bootstrap < 40:
        raise ValueError(
            "inversion_leakage needs n >= 1 and n_bootstrap >= 40, "
            f"got n={len(originals)}, {n_bootstrap=}"
        )
    grey = torch.zeros_like(originals)
    truth = _unsigned(originals)
    hits, grey_hits, true_hits = (
        nearest_is_right(embed(images), identities, gallery)
        for images in (reconstructed, grey, originals)
    )
    low, high = _interval(hits - grey_hits, identities, n_bootstrap, rng)
    return InversionLeakage(
        ssim=float(ssim(_unsigned(reconstructed), truth).mean()),
        grey_ssim=float(ssim(_unsigned(grey), truth).mean()),
        rank_one=float(hits.mean()),
        grey_rank_one=float(grey_hits.mean()),
        true_rank_one=float(true_hits.mean()),
        lift=float((hits - grey_hits).mean()),
        lift_low=low,
        lift_high=high,
        n=len(originals),
        n_identities=len(np.unique(identities)),
    )


def nearest_is_right(
    probes: NDArray[np.float32], identities: NDArray[np.int64], gallery: Gallery
) -> NDArray[np.float64]:
    """Returns ``(n,)`` whether each probe's nearest gallery picture shows the probe's person.

    Ties count by their share: 1/2 where one of two equally near pictures is right.

    Raises:
        ValueError: If a probe's person has no picture in the gallery.
    """
    strangers = np.setdiff1d(identities, gallery.identities)
    if len(strangers):
        raise ValueError(
            f"the gallery needs a picture of every probe's person, got none of {len(strangers)}, "
            f"the first is {strangers[0]}"
        )
    scores = cosine_scores(probes, gallery.embeddings)
    nearest = scores == scores.max(1, keepdims=True)
    right = gallery.identities[None] == identities[:, None]
    share: NDArray[np.float64] = (nearest & right).sum(1) / nearest.sum(1)
    return share


def label_leakage(inferred: NDArray[Any], labels: NDArray[Any]) -> LabelLeakage:
    """Returns how many of the labels were inferred, beside a constant guess.

    Args:
        inferred: ``(n,)``; leave the records out whose label the attacker was given.
        labels: ``(n,)``.

    Raises:
        ValueError: If the shapes differ or there is no record.
    """
    if inferred.shape != labels.shape or labels.ndim != 1 or len(labels) < 1:
        raise ValueError(
            f"label_leakage needs two (n >= 1,) arrays, got {inferred.shape} and {labels.shape}"
        )
    accuracy = float((inferred == labels).mean())
    majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return LabelLeakage(accuracy, majority, accuracy - majority, len(labels))


def leak_auc(scores: NDArray[Any], is_positive: NDArray[Any]) -> float:
    """Returns the area under the ROC curve of an attack's scores; 1/2 tells nothing.

    Args:
        scores: ``(n,)``, higher for positives.
        is_positive: ``(n,)`` bool.

    Raises:
        ValueError: If there are no positives, no negatives, or scores that are not finite.
    """
    positive = np.asarray(is_positive, dtype=bool)
    if not (positive.any() and not positive.all()) or not np.isfinite(scores).all():
        raise ValueError(
            "leak_auc needs positives, negatives and finite scores, "
            f"got {int(positive.sum())} positives of {len(positive)}"
        )
    return float(roc_auc_score(positive, scores))


def _unsigned(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]; what lies outside is shown as black or white."""
    return ((images + 1) / 2).clamp(0, 1)


def _interval(
    values: NDArray[np.float64],
    identities: NDArray[np.int64],
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, people resampled."""
    people, index = np.unique(identities, return_inverse=True)
    totals = np.bincount(index, weights=values, minlength=len(people))
    counts = np.bincount(index, minlength=len(people)).astype(np.float64)
    weights = identity_weights(len(people), n_draws, rng)
    low, high = np.quantile((weights @ totals) / (weights @ counts), [0.025, 0.975])
    return float(low), float(high)
