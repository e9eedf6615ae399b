import json
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyeer.eer_stats import calculate_roc, get_eer_values
from sklearn.metrics import roc_curve

from fedface.evaluation.scores import pair_scores
from fedface.evaluation.verification import (
    InsufficientSupport,
    det_curve,
    equal_error_rate,
    evaluate_verification,
    false_match_rate,
    genuine_acceptance,
    impostor_acceptance,
    tar_at,
    threshold_at,
)
from tests.fedface.evaluation.embeddings import pairs_of, random_people

ALPHAS = (0.5, 0.1, 0.05, 0.03, 0.01)


def scores(n, seed=0, levels=None):
    drawn = np.random.default_rng(seed).normal(size=n)
    return drawn if levels is None else np.round(drawn * levels) / levels


def loop_fmr(impostor, threshold):
    return sum(1 for s in impostor if s >= threshold) / len(impostor)


def loop_threshold(impostor, alpha):
    """The infimum over the only places where FMR(t) steps: just above each score."""
    candidates = [float(np.nextafter(s, np.inf)) for s in impostor]
    return min(t for t in candidates if loop_fmr(impostor, t) <= alpha)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_threshold_is_the_infimum(alpha, levels):
    impostor = scores(400, levels=levels)
    threshold = threshold_at(impostor, alpha)
    assert threshold == loop_threshold(impostor, alpha)
    assert false_match_rate(impostor, threshold) <= alpha
    assert false_match_rate(impostor, float(np.nextafter(threshold, -np.inf))) > alpha


@given(
    st.lists(st.integers(-3, 3), min_size=30, max_size=60),
    st.fractions(Fraction(1, 10), Fraction(9, 10), max_denominator=60),
)
@settings(max_examples=200, deadline=None)
def test_threshold_is_exact_for_every_fraction_and_tie(values, alpha):
    impostor = np.array(values, dtype=np.float64)
    threshold = threshold_at(impostor, float(alpha))
    matches = sum(1 for s in values if s >= threshold)
    assert Fraction(matches, len(values)) <= alpha
    tied = sum(1 for s in values if s >= np.nextafter(threshold, -np.inf))
    assert Fraction(tied, len(values)) > alpha


def test_threshold_is_exact_where_alpha_times_n_rounds_up_or_down():
    for n in range(10, 60, 3):
        impostor = np.arange(n, dtype=np.float64)
        for k in range(4, n):
            for alpha in (k / n, float(np.nextafter(k / n, 0)), float(np.nextafter(k / n, 1))):
                allowed = max(m for m in range(n) if m / n <= alpha)
                assert threshold_at(impostor, alpha) == np.nextafter(n - 1.0 - allowed, n)


def test_all_scores_equal_rejects_all():
    impostor = np.full(100, 0.25)
    threshold = threshold_at(impostor, 0.1)
    assert threshold == np.nextafter(0.25, 1) and false_match_rate(impostor, threshold) == 0


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001, 0.003, 0.03, 0.3, 1e-4, 3e-4, 0.7])
def test_support_ends_at_three_over_alpha_exactly(alpha):
    needed = -(-3 // Fraction(str(alpha)))
    impostor = scores(int(needed))
    threshold_at(impostor, alpha)
    with pytest.raises(InsufficientSupport, match=f"got n_impostor={needed - 1}"):
        threshold_at(impostor[:-1], alpha)


def test_no_impostors_are_no_support():
    with pytest.raises(InsufficientSupport):
        threshold_at(np.empty(0), 0.1)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_rates_that_are_none(alpha):
    with pytest.raises(ValueError, match="alpha") as caught:
        threshold_at(scores(100), alpha)
    assert not isinstance(caught.value, InsufficientSupport)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_scores_that_do_not_compare(bad):
    broken = np.append(scores(100), bad)
    for call in (
        lambda: threshold_at(broken, 0.1),
        lambda: false_match_rate(broken, 0),
        lambda: tar_at(broken, 0),
        lambda: equal_error_rate(broken, scores(5)),
        lambda: equal_error_rate(scores(5), broken),
    ):
        with pytest.raises(ValueError, match="1 that are not finite"):
            call()


def test_rates_include_the_threshold_itself():
    values = np.array([0.1, 0.2, 0.2, 0.3])
    assert false_match_rate(values, 0.2) == 0.75 and tar_at(values, 0.2) == 0.75
    assert tar_at(values, float(np.nextafter(0.2, 1))) == 0.25


@pytest.mark.parametrize("levels", [None, 3])
def test_rates_match_sklearn(levels):
    genuine, impostor = scores(80, 1, levels) + 1, scores(200, 2, levels)
    labels = np.r_[np.ones(80), np.zeros(200)]
    fpr, tpr, thresholds = roc_curve(labels, np.r_[genuine, impostor], drop_intermediate=False)
    for f, t, threshold in zip(fpr, tpr, thresholds, strict=True):
        assert false_match_rate(impostor, threshold) == pytest.approx(f)
        assert tar_at(genuine, threshold) == pytest.approx(t)


def test_tar_at_alpha_is_sklearns_best():
    genuine, impostor = scores(80, 1) + 1, scores(200, 2)
    labels = np.r_[np.ones(80), np.zeros(200)]
    fpr, tpr, _ = roc_curve(labels, np.r_[genuine, impostor], drop_intermediate=False)
    for alpha in ALPHAS[:-1]:
        assert tar_at(genuine, threshold_at(impostor, alpha)) == tpr[fpr <= alpha].max()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [None, 2])
def test_eer_matches_pyeer(seed, levels):
    genuine, impostor = scores(30, seed, levels) + 1, scores(47, seed + 100, levels)
    _, fmr, fnmr = calculate_roc(genuine, impostor)
    assert equal_error_rate(genuine, impostor) == pytest.approx(get_eer_values(fmr, fnmr)[-1])


@pytest.mark.parametrize(
    ("genuine", "impostor", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 0.0),
        ([0.1, 0.2], [0.8, 0.9], 1.0),
        ([0.5], [0.5], 0.5),
        ([0.1, 0.9], [0.2, 0.8], 0.5),
        ([0.2, 0.8, 0.9], [0.1, 0.3, 0.4], 1 / 3),
    ],
)
def test_eer_of_known_scores(genuine, impostor, expected):
    assert equal_error_rate(np.array(genuine), np.array(impostor)) == pytest.approx(expected)


def test_eer_does_not_depend_on_scale_or_order():
    genuine, impostor = scores(30, 1, 2) + 1, scores(47, 2, 2)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(genuine), rng.permutation(impostor)
    assert equal_error_rate(genuine, impostor) == equal_error_rate(*shuffled)
    assert equal_error_rate(genuine, impostor) == equal_error_rate(
        genuine * 8 - 3, impostor * 8 - 3
    )


@pytest.mark.parametrize("levels", [3, 20, None])
def test_det_is_its_definition(levels):
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1, 1, 300), rng.normal(0, 1, 1000)
    if levels is not None:
        genuine, impostor = (np.round(levels * x) / levels for x in (genuine, impostor))
    curve = det_curve(genuine, impostor)
    assert [fmr for fmr, _ in curve] == pytest.approx([10 ** (-k / 10) for k in range(30, -1, -1)])
    everything = np.concatenate([genuine, impostor, [-np.inf, np.inf]])
    thresholds = [t for s in everything for t in (s, np.nextafter(s, np.inf))]
    for fmr, fnmr in curve[::5]:
        kept = [t for t in thresholds if np.mean(impostor >= t) <= fmr + 1e-12]
        assert fnmr == min(np.mean(genuine < t) for t in kept)
    misses = [fnmr for _, fnmr in curve]
    assert misses == sorted(misses, reverse=True) and misses[-1] == 0


def test_det_of_few_impostors_begins_where_they_can_carry_it():
    curve = det_curve(np.array([0.05]), np.array([0.1, 0.9]))
    assert [fmr for fmr, _ in curve] == pytest.approx([10 ** (-k / 10) for k in (3, 2, 1, 0)])
    assert [fnmr for _, fnmr in curve] == [1, 1, 1, 0]
    assert det_curve(np.array([0.5]), np.array([0.9])) == ((1.0, 0.0),)


def test_acceptance_counts_match_the_loops():
    embeddings, identities = random_people([3, 1, 4, 2, 2])
    pairs = pair_scores(embeddings, identities, block_size=5)
    genuine, impostor = pairs_of(embeddings, identities)
    threshold = float(np.median(impostor)) + 0.01
    by_person, by_pair = np.zeros(5), np.zeros((5, 5))
    for i in range(12):
        for j in range(i + 1, 12):
            a, b = sorted((identities[i], identities[j]))
            if float(embeddings[i].astype(float) @ embeddings[j].astype(float)) < threshold:
                continue
            if a == b:
                by_person[a] += 1
            else:
                by_pair[a, b] += 1
    of_genuine, of_impostor = (
        f(pairs, threshold) for f in (genuine_acceptance, impostor_acceptance)
    )
    np.testing.assert_array_equal(of_genuine.accepted, by_person)
    np.testing.assert_array_equal(of_impostor.accepted, by_pair)
    assert of_genuine.n == len(genuine) and of_impostor.n == len(impostor)
    assert of_genuine.rate == tar_at(pairs.genuine, threshold)
    assert of_impostor.rate == false_match_rate(pairs.impostor, threshold)


def test_acceptance_includes_the_threshold_itself():
    pairs = pair_scores(np.ones((4, 1)), np.array([0, 0, 1, 1]))
    above = float(np.nextafter(1.0, 2))
    assert genuine_acceptance(pairs, 1.0).rate == impostor_acceptance(pairs, 1.0).rate == 1
    assert genuine_acceptance(pairs, above).rate == impostor_acceptance(pairs, above).rate == 0


def report(test, calibration, alphas=(0.1, 0.01, 1e-6), seed=0, **options):
    return evaluate_verification(
        *test, *calibration, alphas, 200, np.random.default_rng(seed), **options
    )


def test_report_is_its_definition():
    test, calibration = random_people([4] * 12, seed=1), random_people([4] * 12, seed=2)
    result = report(test, calibration)
    genuine, impostor = pairs_of(*test)
    _, others = pairs_of(*calibration)
    assert [point.alpha for point in result.points] == [0.1, 0.01]
    for point in result.points:
        threshold = loop_threshold(np.round(others, 12), point.alpha)
        assert point.threshold == pytest.approx(threshold, abs=1e-11)
        assert point.tar == pytest.approx(np.mean(genuine >= threshold))
        assert point.fmr == pytest.approx(np.mean(impostor >= threshold))
        assert point.low <= point.tar <= point.high and point.low < point.high
        assert point.fmr_low <= point.fmr <= point.fmr_high and point.fmr_low < point.fmr_high
        assert point.thin_support == (len(others) < 30 / point.alpha)
    assert [r.alpha for r in result.refused] == [1e-6] and "3e+06" in result.refused[0].reason
    assert (result.n_genuine, result.n_impostor) == (len(genuine), len(impostor))
    assert result.n_calibration_impostor == len(others) and result.n_identities == 12
    assert result.eer == equal_error_rate(np.round(genuine, 12), np.round(impostor, 12))
    assert result.det == det_curve(np.round(genuine, 12), np.round(impostor, 12))


def test_thresholds_never_see_the_test_identities():
    calibration = random_people([4] * 12, seed=2)
    a = report(random_people([4] * 12, seed=1), calibration)
    b = report(random_people([4] * 12, noise=0.1, seed=3), calibration)
    assert [p.threshold for p in a.points] == [p.threshold for p in b.points]
    assert a.points[0].tar < b.points[0].tar
    other = report(random_people([4] * 12, seed=1), random_people([4] * 12, seed=4))
    assert other.points[0].threshold != a.points[0].threshold and other.eer == a.eer


def test_report_ignores_the_order_of_images_and_the_names_of_people():
    embeddings, identities = random_people([4] * 12, seed=1)
    calibration = random_people([4] * 12, seed=2)
    order = np.random.default_rng(5).permutation(48)
    a = report((embeddings, identities), calibration)
    b = report((embeddings[order], identities[order] * 3 + 7), calibration)
    assert a == b


def test_report_is_plain_json():
    test = random_people([4] * 12, seed=1)
    result = report(test, test, alphas=np.array([0.1, 1e-6]))
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["points"][0]["alpha"] == 0.1

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for v in value.values() for leaf in leaves(v)]
        if isinstance(value, list | tuple):
            return [leaf for v in value for leaf in leaves(v)]
        return [value]

    assert {type(leaf) for leaf in leaves(asdict(result))} <= {float, int, bool, str}


def test_a_perfect_and_a_collapsed_model():
    perfect = report(random_people([4] * 12, noise=0.0), random_people([4] * 12, seed=2))
    assert perfect.eer == 0 and perfect.points[0].tar == 1 and perfect.points[0].high == 1
    assert perfect.points[0].low < 0.8
    same = np.tile(random_people([1])[0], (48, 1)), np.repeat(np.arange(12), 4)
    collapsed = report(same, same)
    assert collapsed.eer == 0.5 and collapsed.points[0].tar == 0 and collapsed.points[0].fmr == 0


def test_a_cap_on_images():
    people = random_people([4] * 30)
    result = report(people, people, alphas=(0.1,), max_images=20)
    assert result.n_identities == 5 and result.n_genuine == 30 and result.n_impostor == 160
    assert report(people, people, (0.1,), max_images=120) == report(people, people, (0.1,))


@pytest.mark.parametrize("n_images", [[1, 1, 1], [5]])
def test_refuses_test_sets_with_one_kind_of_pair(n_images):
    with pytest.raises(ValueError, match="both kinds"):
        report(random_people(n_images), random_people([4] * 12))


def test_one_calibration_identity_supports_nothing():
    result = report(random_people([4] * 12), random_people([9]), alphas=(0.5,))
    assert result.points == () and "n_impostor=0" in result.refused[0].reason
