import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from fedface.evaluation.protocols import best_threshold, ten_fold_accuracy


def pairs(n_per_fold=12, n_folds=10, levels=None, seed=0):
    rng = np.random.default_rng(seed)
    fold = np.repeat(np.arange(n_folds), n_per_fold)
    same = np.tile(np.arange(n_per_fold) % 2 == 0, n_folds)
    scores = same + rng.normal(size=len(fold))
    if levels is not None:
        scores = np.round(scores * levels) / levels
    order = rng.permutation(len(fold))
    return scores[order], same[order], fold[order]


def loop_best(scores, same):
    """Tries every midpoint and both ends; the strictest of the best."""
    levels = sorted(set(scores.tolist()))
    candidates = [levels[0]]
    candidates += [a + (b - a) / 2 for a, b in pairwise(levels)]
    candidates += [float(np.nextafter(levels[-1], np.inf))]
    best, chosen = -1, None
    for t in candidates:
        correct = sum(1 for s, y in zip(scores, same, strict=True) if (s >= t) == y)
        if correct >= best:
            best, chosen = correct, t
    return chosen


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("n_folds", [2, 10])
def test_matches_the_loops(levels, n_folds):
    scores, same, fold = pairs(levels=levels, n_folds=n_folds)
    result = ten_fold_accuracy(scores, same, fold, n_folds)
    for k in range(n_folds):
        threshold = loop_best(scores[fold != k], same[fold != k])
        correct = [
            (s >= threshold) == y for s, y in zip(scores[fold == k], same[fold == k], strict=True)
        ]
        assert result.thresholds[k] == threshold
        assert result.per_fold[k] == pytest.approx(sum(correct) / len(correct))
    assert result.mean == pytest.approx(np.mean(result.per_fold))
    assert result.std == pytest.approx(np.std(result.per_fold))
    assert result.std > 0
    json.dumps(asdict(result), allow_nan=False)


def insightface_accuracy(scores, same, fold, n_folds):
    """The published code's rule: a fine grid of squared distances, the best on the other folds."""
    distances, grid = 2 - 2 * scores, np.arange(0, 4, 0.001)
    accuracies = []
    for k in range(n_folds):
        train = fold != k
        accuracy = [np.mean((distances[train] < t) == same[train]) for t in grid]
        chosen = grid[int(np.argmax(accuracy))]
        accuracies.append(np.mean((distances[~train] < chosen) == same[~train]))
    return np.mean(accuracies)


def test_agrees_with_insightfaces_grid():
    scores, same, fold = pairs(n_per_fold=60, seed=3)
    scores = np.clip(scores / 5, -1, 1)
    expected = insightface_accuracy(scores, same, fold, 10)
    assert ten_fold_accuracy(scores, same, fold).mean == pytest.approx(expected, abs=0.02)


def test_the_threshold_never_sees_its_fold():
    scores, same, fold = pairs(n_folds=3)
    altered = scores.copy()
    altered[fold == 1] = np.where(same[fold == 1], 5, 4)
    before = ten_fold_accuracy(scores, same, fold, 3).thresholds
    after = ten_fold_accuracy(altered, same, fold, 3).thresholds
    assert before[1] == after[1] and before[0] != after[0] and before[2] != after[2]


def test_separated_scores_are_perfect_and_split_in_the_middle():
    scores, same = np.array([0.1, 0.3, 0.7, 0.9] * 2), np.array([False, False, True, True] * 2)
    result = ten_fold_accuracy(scores, same, np.repeat([0, 1], 4), n_folds=2)
    assert result.mean == 1 and result.std == 0
    assert result.thresholds == pytest.approx((0.5, 0.5))


def test_equal_scores_are_a_coin():
    result = ten_fold_accuracy(np.zeros(8), np.arange(8) % 2 == 0, np.arange(8) // 4, n_folds=2)
    assert result.per_fold == (0.5, 0.5)


def test_neighbouring_floats_are_told_apart():
    """Half of their distance rounds to the even one: down from one, up from the next."""
    low = 0.3
    for _ in range(2):
        high = float(np.nextafter(low, 1))
        assert best_threshold(np.array([low, high]), np.array([False, True])) == high
        low = high


def test_reversed_scores_accept_none_at_the_strictest():
    threshold = best_threshold(np.array([0.1, 0.9]), np.array([True, False]))
    assert threshold > 0.9


def test_order_of_pairs_makes_no_difference():
    scores, same, fold = pairs(levels=3)
    order = np.random.default_rng(9).permutation(len(scores))
    assert ten_fold_accuracy(scores, same, fold) == ten_fold_accuracy(
        scores[order], same[order], fold[order]
    )


def broken(**changes):
    scores, same, fold = pairs(n_folds=3)
    arguments = {"scores": scores, "same": same, "fold": fold, "n_folds": 3}
    return arguments | {k: v(scores, same, fold) for k, v in changes.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (broken(n_folds=lambda *_: 4), "fold 3 needs .* n_genuine=0, n_impostor=0"),
        (broken(n_folds=lambda *_: 2), "got fold 2"),
        (broken(n_folds=lambda *_: 1), "n_folds"),
        (broken(same=lambda s, y, f: y & (f != 1)), "fold 1 needs .* n_genuine=0, n_impostor=12"),
        (broken(same=lambda s, y, f: y | (f == 1)), "fold 1 needs .* n_genuine=12, n_impostor=0"),
        (broken(same=lambda s, y, f: y.astype(int)), "dtype bool"),
        (broken(scores=lambda s, y, f: s * np.nan), "finite"),
        (broken(scores=lambda s, y, f: s[:-1]), "one shape"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ten_fold_accuracy(**arguments)
