"""Matching across views: enrolled by one kind of picture, searched by another (photo and sketch).

Only pairs of one gallery and one probe picture are compared; two pictures of one kind never are.
Words, thresholds and intervals are those of :mod:`fedface.evaluation.verification` and
:mod:`fedface.evaluation.identification`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedface.evaluation.identification import IdentificationReport, RankRate
from fedface.evaluation.intervals import Acceptance
from fedface.evaluation.scores import check_embeddings, cosine_scores
from fedface.evaluation.verification import (
    InsufficientSupport,
    OperatingPoint,
    RefusedAlpha,
    VerificationReport,
    det_curve,
    equal_error_rate,
    threshold_at,
)

Embeddings = NDArray[np.float32]
Identities = NDArray[np.int64]


@dataclass(frozen=True)
class Sides:
    """The same people from two sides.

    Attributes:
        gallery: ``(n_gallery, dim)`` L2-normalised embeddings of enrolled pictures.
        gallery_identities: ``(n_gallery,)`` whom they show.
        probes: ``(n_probes, dim)`` L2-normalised embeddings of the other kind of pictures.
        probe_identities: ``(n_probes,)`` whom they show.
    """

    gallery: Embeddings
    gallery_identities: Identities
    probes: Embeddings
    probe_identities: Identities

    def __post_init__(self) -> None:
        """Checks both sides.

        Raises:
            ValueError: If embeddings are invalid, or nobody stands on both sides.
        """
        check_embeddings(self.gallery, self.gallery_identities)
        check_embeddings(self.probes, self.probe_identities)
        if not np.isin(self.probe_identities, self.gallery_identities).any():
            raise ValueError("matching across views needs a person on both sides, got none")

    @property
    def scores(self) -> NDArray[np.float64]:
        """``(n_probes, n_gallery)`` cosines."""
        return cosine_scores(self.probes, self.gallery)

    @property
    def same(self) -> NDArray[np.bool_]:
        """``(n_probes, n_gallery)``: whether a pair shows one person."""
        return np.equal.outer(self.probe_identities, self.gallery_identities)


def verify_across(
    test: Sides,
    calibration: Sides,
    alphas: Sequence[float],
    n_bootstrap: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> VerificationReport:
    """Returns TAR and FMR on the test people at thresholds of the calibration people.

    Arguments and refusals as :func:`fedface.evaluation.verification.evaluate_verification`; pairs
    are (probe, gallery) only.

    Raises:
        ValueError: If the test has no genuine or no impostor pair.
    """
    scores, same = test.scores, test.same
    genuine, impostor = scores[same], scores[~same]
    others = calibration.scores[~calibration.same]
    if not len(impostor):
        raise ValueError("matching across views needs impostor pairs of test people, got none")
    points, refused = [], []
    for alpha in map(float, alphas):
        try:
            threshold = threshold_at(others, alpha)
        except InsufficientSupport as error:
            refused.append(RefusedAlpha(alpha, str(error)))
            continue
        tar = _accepted(test, scores, same, threshold, True).estimate(n_bootstrap, rng, confidence)
        fmr = _accepted(test, scores, same, threshold, False).estimate(n_bootstrap, rng, confidence)
        thin = 30 / len(others) > alpha
        points.append(
            OperatingPoint(
                alpha, threshold, tar.rate, tar.low, tar.high, fmr.rate, fmr.low, fmr.high, thin
            )
        )
    return VerificationReport(
        points=tuple(points),
        refused=tuple(refused),
        eer=equal_error_rate(genuine, impostor),
        n_genuine=len(genuine),
        n_impostor=len(impostor),
        n_identities=len(_people(test)),
        n_calibration_impostor=len(others),
        confidence=confidence,
        det=det_curve(genuine, impostor),
    )


def identify_across(
    test: Sides,
    ranks: Sequence[int],
    n_bootstrap: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> IdentificationReport:
    """Returns closed-set identification rates: probes of enrolled people against the whole gallery.

    A person's score is that of the best of his or her gallery pictures; others who tie with the
    own one stand before it.

    Raises:
        ValueError: If a rank is outside 1..n_people of the gallery.
    """
    people = np.unique(test.gallery_identities)
    for rank in ranks:
        if not 1 <= rank <= len(people):
            raise ValueError(f"rank needs to lie in 1..n_gallery={len(people)}, got {rank}")
    scores = test.scores
    best = np.stack([scores[:, test.gallery_identities == p].max(1) for p in people], axis=1)
    enrolled = np.isin(test.probe_identities, people)
    own = np.searchsorted(people, test.probe_identities[enrolled])
    best = best[enrolled]
    found = np.count_nonzero(best >= np.take_along_axis(best, own[:, None], axis=1), axis=1)
    total = np.bincount(own, minlength=len(people)).astype(np.float64)
    rates = []
    for rank in ranks:
        hits = np.bincount(own[found <= rank], minlength=len(people)).astype(np.float64)
        result = Acceptance(hits, total).estimate(n_bootstrap, rng, confidence)
        rates.append(RankRate(int(rank), result.rate, result.low, result.high))
    return IdentificationReport(tuple(rates), len(people), len(own), confidence)


def _people(sides: Sides) -> Identities:
    return np.unique(np.concatenate([sides.gallery_identities, sides.probe_identities]))


def _accepted(
    sides: Sides,
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    threshold: float,
    genuine: bool,
) -> Acceptance:
    """The accepted pairs of one kind by identity, for the bootstrap over people."""
    people = _people(sides)
    n = len(people)
    probe = np.searchsorted(people, sides.probe_identities)
    gallery = np.searchsorted(people, sides.gallery_identities)
    accepted, total = np.zeros((n, n)), np.zeros((n, n))
    rows, columns = np.nonzero(same == genuine)
    low = np.minimum(probe[rows], gallery[columns])
    high = np.maximum(probe[rows], gallery[columns])
    np.add.at(total, (low, high), 1.0)
    np.add.at(accepted, (low, high), scores[rows, columns] >= threshold)
    if genuine:
        return Acceptance(np.diag(accepted).copy(), np.diag(total).copy())
    return Acceptance(accepted, total)
