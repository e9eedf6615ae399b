"""Verification (1:1): is this the person? TAR at a fixed false match rate, and the EER.

Words and definitions follow ISO/IEC 19795-1: two images match if and only if s >= t;
FMR(t) = Pr[impostor s >= t], FNMR(t) = Pr[genuine s < t], TAR = 1 - FNMR. The threshold of a
false match rate comes from identities that are neither trained on nor tested on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedface.evaluation.intervals import Acceptance, Estimate
from fedface.evaluation.scores import PairScores, choose_images, pair_scores

Scores = NDArray[np.float64]

DET_RATES = 10.0 ** (np.arange(-50, 1) / 10)
"""The false match rates that a DET curve is recorded at: ten a decade, from 1e-5."""


class InsufficientSupport(ValueError):
    """There are too few impostor scores to measure so small a false match rate."""


@dataclass(frozen=True)
class OperatingPoint:
    """What the model does at one threshold, on the test identities.

    Attributes:
        alpha: The false match rate asked for.
        threshold: tau_alpha, from the calibration identities.
        tar: True accept rate, 1 - FNMR.
        low: Lower end of the identity-bootstrap interval of ``tar``, threshold held fixed.
        high: Upper end.
        fmr: The false match rate measured on the test identities: does the threshold transfer?
        fmr_low: Lower end of the identity-bootstrap interval of ``fmr``.
        fmr_high: Upper end.
        thin_support: Whether the calibration has less than 30 / alpha impostor scores, so that
            the threshold itself is uncertain by tens of per cent of alpha.
    """

    alpha: float
    threshold: float
    tar: float
    low: float
    high: float
    fmr: float
    fmr_low: float
    fmr_high: float
    thin_support: bool


@dataclass(frozen=True)
class RefusedAlpha:
    """A false match rate that the calibration identities cannot carry, and why."""

    alpha: float
    reason: str


@dataclass(frozen=True)
class VerificationReport:
    """One model's verification results; ``dataclasses.asdict`` gives plain JSON values.

    Attributes:
        points: One operating point per false match rate, in the order asked for.
        refused: The false match rates without enough calibration impostors.
        eer: The equal error rate on the test identities.
        n_genuine: Genuine test pairs.
        n_impostor: Impostor test pairs.
        n_identities: Test identities.
        n_calibration_impostor: Impostor calibration pairs.
        confidence: The coverage of every interval.
        det: The DET curve of the test identities, see :func:`det_curve`.
    """

    points: tuple[OperatingPoint, ...]
    refused: tuple[RefusedAlpha, ...]
    eer: float
    n_genuine: int
    n_impostor: int
    n_identities: int
    n_calibration_impostor: int
    confidence: float
    det: tuple[tuple[float, float], ...] = ()


def false_match_rate(impostor: Scores, threshold: float) -> float:
    """Returns FMR(t), the share of the ``(n_impostor,)`` scores that are ``>= threshold``.

    Raises:
        ValueError: If there is no score or one is not finite.
    """
    _check_scores("impostor", impostor)
    return float(np.count_nonzero(impostor >= threshold) / len(impostor))


def tar_at(genuine: Scores, threshold: float) -> float:
    """Returns the true accept rate, the share of the ``(n_genuine,)`` scores ``>= threshold``.

    Raises:
        ValueError: If there is no score or one is not finite.
    """
    _check_scores("genuine", genuine)
    return float(np.count_nonzero(genuine >= threshold) / len(genuine))


def threshold_at(impostor: Scores, alpha: float) -> float:
    """Returns tau_alpha = inf{t : FMR(t) <= alpha}, as the smallest float64 in that set.

    With k the largest number of false matches that alpha allows, k / n <= alpha, the set begins
    just above the (k + 1)-th largest impostor score s. A match is s >= t, so s itself is not in
    the set, and the float next above s is returned. Ties at s are all rejected.

    Args:
        impostor: ``(n_impostor,)`` finite scores.
        alpha: The false match rate allowed, in (0, 1).

    Raises:
        InsufficientSupport: If n_impostor < 3 / alpha. With no error in n trials the 95 % bound on
            a rate is 3 / n, so fewer scores cannot show that the rate is below alpha.
        ValueError: If ``alpha`` is outside (0, 1) or a score is not finite.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha needs to lie in (0, 1), got {alpha}")
    n = len(impostor)
    if n < 1 or 3 / n > alpha:
        raise InsufficientSupport(
            f"a false match rate of {alpha} needs n_impostor >= 3 / alpha = {3 / alpha:.6g}, "
            f"got n_impostor={n}"
        )
    _check_scores("impostor", impostor)
    allowed = int(alpha * n)
    while (allowed + 1) / n <= alpha:
        allowed += 1
    while allowed / n > alpha:
        allowed -= 1
    rejected = np.partition(impostor, n - 1 - allowed)[n - 1 - allowed]
    return float(np.nextafter(rejected, np.inf))


def equal_error_rate(genuine: Scores, impostor: Scores) -> float:
    """Returns the rate at which FMR(t) = FNMR(t), by the rule of FVC2000.

    The rates are steps and rarely meet. With t2 the lowest score where FNMR >= FMR and t1 the one
    below, the result is the mean of both rates at whichever of the two has the smaller sum; where
    they meet exactly it is their value (Maio et al., "FVC2000", TPAMI 2002, section 5). Beyond
    the highest score everything is rejected, so there is always a meeting.

    Raises:
        ValueError: If a side has no score or one that is not finite.
    """
    _check_scores("genuine", genuine)
    _check_scores("impostor", impostor)
    thresholds = np.append(np.unique(np.concatenate([genuine, impostor])), np.inf)
    fnmr = np.searchsorted(np.sort(genuine), thresholds) / len(genuine)
    fmr = (len(impostor) - np.searchsorted(np.sort(impostor), thresholds)) / len(impostor)
    second = int(np.argmax(fnmr >= fmr))
    first = second if fnmr[second] == fmr[second] else second - 1
    return float(min(fnmr[first] + fmr[first], fnmr[second] + fmr[second]) / 2)


def det_curve(genuine: Scores, impostor: Scores) -> tuple[tuple[float, float], ...]:
    """Returns (FMR, FNMR) at the false match rates of ``DET_RATES``, ascending.

    The FNMR is that at the lowest threshold which keeps the false match rate of these very scores;
    rates below one in the ``(n_impostor,)`` scores are left out, since none can be kept exactly.

    Raises:
        ValueError: If a side has no score or one that is not finite.
    """
    _check_scores("genuine", genuine)
    _check_scores("impostor", impostor)
    from_top, ascending = np.sort(impostor)[::-1], np.sort(genuine)
    n_allowed = np.floor(DET_RATES * len(impostor) + 1e-9).astype(np.int64)
    rates, n_allowed = DET_RATES[n_allowed > 0], n_allowed[n_allowed > 0]
    # A match is s >= t: with k allowed the threshold lies just above the (k + 1)-th largest score.
    bounds = np.append(from_top, -np.inf)[n_allowed]
    fnmr = np.searchsorted(ascending, bounds, side="right") / len(genuine)
    return tuple(zip(rates.tolist(), fnmr.tolist(), strict=True))


def genuine_acceptance(pairs: PairScores, threshold: float) -> Acceptance:
    """Returns the genuine pairs accepted at ``threshold``, by identity: its rate is the TAR.

    Raises:
        ValueError: If no identity has two images.
    """
    n_identities = len(pairs.n_images)
    matched = pairs.genuine_identities[pairs.genuine >= threshold]
    accepted = np.bincount(matched, minlength=n_identities).astype(np.float64)
    return Acceptance(accepted, pairs.n_images * (pairs.n_images - 1) / 2)


def impostor_acceptance(pairs: PairScores, threshold: float) -> Acceptance:
    """Returns the impostor pairs accepted at ``threshold``, by identities: its rate is the FMR.

    Raises:
        ValueError: If there are fewer than two identities.
    """
    n_identities = len(pairs.n_images)
    first, second = pairs.impostor_identities[pairs.impostor >= threshold].astype(np.int64).T
    flat = np.bincount(first * n_identities + second, minlength=n_identities**2)
    accepted = flat.reshape(n_identities, n_identities).astype(np.float64)
    total = np.triu(np.outer(pairs.n_images, pairs.n_images), k=1).astype(np.float64)
    return Acceptance(accepted, total)


def evaluate_verification(
    embeddings: NDArray[np.float32],
    identities: NDArray[np.int64],
    calibration_embeddings: NDArray[np.float32],
    calibration_identities: NDArray[np.int64],
    alphas: Sequence[float],
    n_bootstrap: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
    max_images: int | None = None,
) -> VerificationReport:
    """Returns TAR and FMR on the test identities at thresholds of the calibration identities.

    Args:
        embeddings: ``(n, dim)`` L2-normalised test embeddings.
        identities: ``(n,)`` whom they show.
        calibration_embeddings: ``(m, dim)`` of other people. The numbering of the two sets is
            separate, so that they are disjoint is the caller's to ensure.
        calibration_identities: ``(m,)`` whom they show.
        alphas: False match rates, each in (0, 1).
        n_bootstrap: Identity bootstraps per interval, at least 2 / (1 - confidence).
        rng: Draws the bootstraps and, with ``max_images``, the images.
        confidence: The coverage of the intervals.
        max_images: At most so many images from each of the two sets (whole identities, see
            :func:`~fedface.evaluation.scores.choose_images`); None takes all.

    Raises:
        ValueError: If the embeddings are invalid, or the test set has no genuine or no impostor
            pair.
    """
    test = _limited_pairs(embeddings, identities, max_images, rng)
    if len(test.genuine) == 0 or len(test.impostor) == 0:
        raise ValueError(
            "verification needs test pairs of both kinds, "
            f"got n_genuine={len(test.genuine)}, n_impostor={len(test.impostor)}"
        )
    calibration = _limited_pairs(calibration_embeddings, calibration_identities, max_images, rng)
    points, refused = [], []
    for alpha in map(float, alphas):
        try:
            threshold = threshold_at(calibration.impostor, alpha)
        except InsufficientSupport as error:
            refused.append(RefusedAlpha(alpha, str(error)))
            continue
        thin = 30 / len(calibration.impostor) > alpha
        tar = genuine_acceptance(test, threshold).estimate(n_bootstrap, rng, confidence)
        fmr = impostor_acceptance(test, threshold).estimate(n_bootstrap, rng, confidence)
        points.append(_operating_point(alpha, threshold, tar, fmr, thin))
    return VerificationReport(
        points=tuple(points),
        refused=tuple(refused),
        eer=equal_error_rate(test.genuine, test.impostor),
        n_genuine=len(test.genuine),
        n_impostor=len(test.impostor),
        n_identities=len(test.n_images),
        n_calibration_impostor=len(calibration.impostor),
        confidence=confidence,
        det=det_curve(test.genuine, test.impostor),
    )


def _operating_point(
    alpha: float, threshold: float, tar: Estimate, fmr: Estimate, thin: bool
) -> OperatingPoint:
    return OperatingPoint(
        alpha, threshold, tar.rate, tar.low, tar.high, fmr.rate, fmr.low, fmr.high, thin
    )


def _limited_pairs(
    embeddings: NDArray[np.float32],
    identities: NDArray[np.int64],
    max_images: int | None,
    rng: np.random.Generator,
) -> PairScores:
    """All pairs of at most ``max_images`` images."""
    if max_images is None or max_images >= len(identities):
        return pair_scores(embeddings, identities)
    chosen = choose_images(identities, max_images, rng)
    return pair_scores(embeddings[chosen], identities[chosen])


def _check_scores(name: str, scores: Scores) -> None:
    """Refuses no scores, and scores that cannot be compared."""
    if scores.ndim != 1 or len(scores) < 1 or not np.all(np.isfinite(scores)):
        raise ValueError(
            f"{name} scores need shape (n >= 1,) and finite values, got shape {scores.shape} "
            f"with {np.count_nonzero(~np.isfinite(scores))} that are not finite"
        )
