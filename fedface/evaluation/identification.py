"""Closed-set identification (1:N): who of the enrolled is this? Rank-k rates.

ISO/IEC 19795-1: the rank of a probe is the place of its own identity when the gallery is sorted by
score; the identification rate at rank k is the share of probes with a rank of at most k (one point
of the cumulative match characteristic).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedface.evaluation.intervals import Acceptance
from fedface.evaluation.scores import check_embeddings, cosine_scores


@dataclass(frozen=True)
class RankRate:
    """The identification rate at one rank, with its identity-bootstrap interval."""

    rank: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class IdentificationReport:
    """Closed-set identification; ``dataclasses.asdict`` gives plain JSON values.

    Attributes:
        rates: One rate per rank, in the order asked for.
        n_gallery: Enrolled identities, one image each. Rates of other sizes do not compare.
        n_probes: Probe images.
        confidence: The coverage of the intervals.
    """

    rates: tuple[RankRate, ...]
    n_gallery: int
    n_probes: int
    confidence: float


def probe_ranks(
    embeddings: NDArray[np.float32], identities: NDArray[np.int64], block_size: int = 1024
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns each probe's rank, from 1, and its identity's place in the gallery.

    The first image (lowest index) of each identity is enrolled, all others are probes in their
    given order; identities with one image are enrolled only. Other identities that tie with the
    own one stand before it, so a model that maps all faces to one point gets the last rank and not
    the first.

    Args:
        embeddings: ``(n, dim)``, L2-normalised.
        identities: ``(n,)`` whom each image shows.
        block_size: Probes compared at once.

    Returns:
        Two ``(n_probes,)`` arrays: ranks in 1..n_gallery, and the identities counted in ascending
        order of their labels.

    Raises:
        ValueError: If the embeddings are invalid or ``block_size`` is below 1.
    """
    check_embeddings(embeddings, identities)
    if block_size < 1:
        raise ValueError(f"probe_ranks needs block_size >= 1, got {block_size}")
    _, first, index = np.unique(identities, return_index=True, return_inverse=True)
    is_probe = np.ones(len(identities), dtype=bool)
    is_probe[first] = False
    probes, own = embeddings[is_probe], index[is_probe].astype(np.int64)
    ranks = [np.empty(0, np.int64)]
    for start in range(0, len(probes), block_size):
        scores = cosine_scores(probes[start : start + block_size], embeddings[first])
        own_scores = np.take_along_axis(scores, own[start : start + block_size, None], axis=1)
        ranks.append(np.count_nonzero(scores >= own_scores, axis=1))
    return np.concatenate(ranks).astype(np.int64), own


def evaluate_identification(
    embeddings: NDArray[np.float32],
    identities: NDArray[np.int64],
    ranks: Sequence[int],
    n_bootstrap: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> IdentificationReport:
    """Returns the closed-set identification rates on the test identities.

    The interval resamples the identities of the probes; the gallery stays as it is.

    Args:
        embeddings: ``(n, dim)``, L2-normalised.
        identities: ``(n,)`` whom each image shows.
        ranks: The ranks k, each in 1..n_gallery.
        n_bootstrap: Identity bootstraps per interval, at least 2 / (1 - confidence).
        rng: Draws the bootstraps.
        confidence: The coverage of the intervals.

    Raises:
        ValueError: If no identity has two images, or a rank is outside 1..n_gallery.
    """
    found, own = probe_ranks(embeddings, identities)
    n_gallery = len(identities) - len(found)
    if len(found) == 0:
        raise ValueError("identification needs an identity with two images, got none")
    for rank in ranks:
        if not 1 <= rank <= n_gallery:
            raise ValueError(f"rank needs to lie in 1..n_gallery={n_gallery}, got {rank}")
    total = np.bincount(own, minlength=n_gallery).astype(np.float64)
    rates = []
    for rank in ranks:
        hits = np.bincount(own[found <= rank], minlength=n_gallery).astype(np.float64)
        result = Acceptance(hits, total).estimate(n_bootstrap, rng, confidence)
        rates.append(RankRate(int(rank), result.rate, result.low, result.high))
    return IdentificationReport(tuple(rates), n_gallery, len(found), confidence)
