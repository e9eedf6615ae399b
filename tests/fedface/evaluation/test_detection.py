import json
from dataclasses import asdict

import numpy as np
import pytest

from fedface.evaluation.detection import detection_report


def records(n_rounds=8, n_clients=6, seed=0):
    rng = np.random.default_rng(seed)
    participated = rng.random((n_rounds, n_clients)) < 0.8
    malicious = np.zeros((n_rounds, n_clients), bool)
    malicious[3:, :2] = True
    pruned = participated & (rng.random((n_rounds, n_clients)) < 0.2 + 0.5 * malicious)
    scores = np.round(rng.normal(size=(n_rounds, n_clients)) + malicious, 1)
    scores[~participated] = np.nan
    return scores, pruned, malicious, participated


def loop_auroc(entries):
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, bad_a in entries
        for b, bad_b in entries
        if bad_a and not bad_b
    ]
    return sum(wins) / len(wins) if wins else None


def loop_share(events):
    events = list(events)
    return sum(events) / len(events) if events else None


@pytest.mark.parametrize("seed", range(5))
def test_matches_the_loops(seed):
    scores, pruned, malicious, participated = records(seed=seed)
    report = detection_report(scores, pruned, malicious, participated)
    cells = [(r, k) for r in range(8) for k in range(6) if participated[r, k]]
    assert report.tpr == loop_share(pruned[c] for c in cells if malicious[c])
    assert report.fpr == loop_share(pruned[c] for c in cells if not malicious[c])
    assert report.n_malicious + report.n_honest == len(cells)
    her = [loop_share(pruned[c] for c in cells if c[1] == k and not malicious[c]) for k in range(6)]
    assert report.honest_exclusion == tuple(her)
    assert report.max_honest_exclusion == max(rate for rate in her if rate is not None)
    assert report.auroc == pytest.approx(loop_auroc([(scores[c], malicious[c]) for c in cells]))
    areas = [loop_auroc([(scores[c], malicious[c]) for c in cells if c[0] == r]) for r in range(8)]
    assert report.auroc_within_rounds == pytest.approx(np.mean([a for a in areas if a is not None]))
    clean = [r for r in range(8) if not any(malicious[c] for c in cells if c[0] == r)]
    assert report.n_clean_rounds == len(clean) >= 3
    assert report.clean_exclusion == loop_share(pruned[c] for c in cells if c[0] in clean)
    json.dumps(asdict(report), allow_nan=False)


def test_scores_on_another_scale_each_round_hurt_only_the_pooled_area():
    malicious = np.tile([True, False, False, False], (5, 1))
    scores = np.tile([1.0, 0.0, 0.1, 0.2], (5, 1)) + 10 * np.arange(5)[:, None]
    everybody = np.ones((5, 4), bool)
    report = detection_report(scores, malicious, malicious, everybody)
    assert report.auroc_within_rounds == 1 and report.auroc < 0.7
    assert (report.tpr, report.fpr) == (1, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_scores_count_as_the_extremes(sign):
    malicious = np.array([[True, True, False, False]])
    scores = sign * np.array([[np.inf, 5.0, 1.0, -np.inf]])
    report = detection_report(scores, ~malicious & False, malicious, malicious | True)
    assert report.auroc == (1 if sign == 1 else 0)


def test_what_is_undefined_is_none():
    nobody, everybody = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    honest = detection_report(np.zeros((2, 3)), nobody, nobody, everybody)
    assert honest.tpr is None and honest.auroc is None and honest.auroc_within_rounds is None
    assert honest.fpr == 0 and honest.n_clean_rounds == 2 and honest.clean_exclusion == 0
    hostile = detection_report(None, everybody, everybody, everybody)
    assert hostile.tpr == 1 and hostile.fpr is None and hostile.clean_exclusion is None
    assert hostile.honest_exclusion == (None,) * 3 and hostile.max_honest_exclusion is None
    empty = detection_report(np.full((2, 3), np.nan), nobody, everybody, nobody)
    assert empty.n_clean_rounds == 0 and empty.n_malicious == 0 and empty.tpr is None
    json.dumps([asdict(honest), asdict(hostile), asdict(empty)], allow_nan=False)


def test_an_absent_attacker_leaves_the_round_clean():
    malicious = np.array([[True, False], [True, False]])
    participated = np.array([[False, True], [True, True]])
    pruned = np.array([[False, True], [False, False]])
    report = detection_report(None, pruned, malicious, participated)
    assert report.n_clean_rounds == 1 and report.clean_exclusion == 1
    assert report.honest_exclusion == (None, 0.5)


def test_clients_and_rounds_may_be_permuted():
    arrays = records()
    rounds, clients = (
        np.random.default_rng(1).permutation(8),
        np.random.default_rng(2).permutation(6),
    )
    a = detection_report(*arrays)
    b = detection_report(*(x[rounds][:, clients] for x in arrays))
    assert b.honest_exclusion == tuple(a.honest_exclusion[k] for k in clients)
    assert b.auroc == a.auroc and b.tpr == a.tpr and b.clean_exclusion == a.clean_exclusion
    assert b.auroc_within_rounds == pytest.approx(a.auroc_within_rounds)


def test_refuses_contradictions():
    scores, pruned, malicious, participated = records()
    with pytest.raises(ValueError, match="participated"):
        detection_report(scores, ~participated, malicious, participated)
    with pytest.raises(ValueError, match="NaN"):
        detection_report(scores * np.nan, pruned, malicious, participated)
    with pytest.raises(ValueError, match="malicious needs shape"):
        detection_report(scores, pruned, malicious[0], participated)
    with pytest.raises(ValueError, match="dtype bool"):
        detection_report(scores, pruned, malicious.astype(int), participated)
    with pytest.raises(ValueError, match="scores need shape"):
        detection_report(scores[:-1], pruned, malicious, participated)
    with pytest.raises(ValueError, match="n_rounds, n_clients"):
        detection_report(None, pruned[0], malicious[0], participated[0])
