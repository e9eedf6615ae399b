"""Pair protocols of public test sets: LFW's View 2 and those that copy it.

Huang et al., "Labeled Faces in the Wild", UMass 07-49, 2007: ten folds of people who appear in no
other fold, 300 genuine and 300 impostor pairs each. The accuracy on a fold uses the threshold that
is best on the nine others. CFP-FP, AgeDB-30, CALFW and CPLFW are reported in the same way.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over the folds; ``dataclasses.asdict`` gives plain JSON values.

    Attributes:
        mean: The mean of the folds' accuracies.
        std: Their standard deviation (divided by n_folds, as InsightFace prints it). LFW's own
            standard error of the mean is std / sqrt(n_folds - 1).
        per_fold: Each fold's accuracy.
        thresholds: The threshold that each fold was judged by.
    """

    mean: float
    std: float
    per_fold: tuple[float, ...]
    thresholds: tuple[float, ...]


def best_threshold(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Returns the threshold of the highest accuracy, the strictest if several are best.

    The candidates lie halfway between neighbouring scores, at the lowest score (all match) and
    just above the highest (none matches). InsightFace tries a grid of 400 distances instead and
    also keeps the strictest of the best; the halves are exact whatever the scale of the scores.

    Args:
        scores: ``(n >= 1,)`` finite; a pair matches if and only if its score is >= t.
        same: ``(n,)`` whether each pair is genuine.
    """
    levels = np.unique(scores)
    halves = levels[:-1] + (levels[1:] - levels[:-1]) / 2
    halves = np.maximum(halves, np.nextafter(levels[:-1], np.inf))
    candidates = np.concatenate([levels[:1], halves, [np.nextafter(levels[-1], np.inf)]])
    accepted = np.count_nonzero(same) - np.searchsorted(np.sort(scores[same]), candidates)
    rejected = np.searchsorted(np.sort(scores[~same]), candidates)
    correct = accepted + rejected
    return float(candidates[np.flatnonzero(correct == correct.max())[-1]])


def ten_fold_accuracy(
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    fold: NDArray[np.int64],
    n_folds: int = 10,
) -> FoldAccuracy:
    """Returns the accuracy on each fold at the threshold that is best on all other folds.

    Args:
        scores: ``(n,)`` finite similarity scores.
        same: ``(n,)`` bool, whether each pair shows one person.
        fold: ``(n,)`` each pair's fold, 0..n_folds-1.
        n_folds: The number of folds, 2 or more; 10 in every published protocol.

    Raises:
        ValueError: If shapes or types differ, a score is not finite, or a fold is empty, unknown
            or has pairs of one class only.
    """
    _check_folds(scores, same, fold, n_folds)
    per_fold, thresholds = [], []
    for k in range(n_folds):
        held_out = fold == k
        threshold = best_threshold(scores[~held_out], same[~held_out])
        correct = (scores[held_out] >= threshold) == same[held_out]
        per_fold.append(float(correct.mean()))
        thresholds.append(threshold)
    return FoldAccuracy(
        float(np.mean(per_fold)), float(np.std(per_fold)), tuple(per_fold), tuple(thresholds)
    )


def _check_folds(
    scores: NDArray[np.float64], same: NDArray[np.bool_], fold: NDArray[np.int64], n_folds: int
) -> None:
    """Refuses folds that give no accuracy."""
    if scores.ndim != 1 or same.shape != scores.shape or fold.shape != scores.shape:
        raise ValueError(
            "scores, same and fold need one shape (n,), "
            f"got {scores.shape}, {same.shape} and {fold.shape}"
        )
    if same.dtype != np.bool_:
        raise ValueError(f"same needs dtype bool, got {same.dtype}")
    if not np.all(np.isfinite(scores)):
        raise ValueError("scores need to be finite, got NaN or infinity")
    if n_folds < 2:
        raise ValueError(f"n_folds needs to be 2 or more, got {n_folds}")
    unknown = np.setdiff1d(fold, np.arange(n_folds))
    if len(unknown) > 0:
        raise ValueError(f"folds need to be 0..{n_folds - 1}, got fold {unknown[0]}")
    for k in range(n_folds):
        n_genuine = int(np.count_nonzero(same[fold == k]))
        n_impostor = int(np.count_nonzero(fold == k)) - n_genuine
        if n_genuine == 0 or n_impostor == 0:
            raise ValueError(
                f"fold {k} needs genuine and impostor pairs, "
                f"got n_genuine={n_genuine}, n_impostor={n_impostor}"
            )
