"""The membership test of whole people: exact, calibrated, and honest about its power."""

import numpy as np
import pytest

from fedface.evaluation.membership import auc, compactness, membership_test


def embeddings(rng: np.random.Generator, spread: float, n_people: int) -> np.ndarray:
    """Three images a person, as far apart as ``spread`` says."""
    centres = rng.normal(size=(n_people, 1, 16))
    images = (centres + spread * rng.normal(size=(n_people, 3, 16))).reshape(-1, 16)
    return images / np.linalg.norm(images, axis=1, keepdims=True)


def people(n: int) -> np.ndarray:
    return np.repeat(np.arange(n), 3)


def test_compactness_is_the_mean_cosine_of_a_persons_pairs():
    rng = np.random.default_rng(0)
    found = embeddings(rng, 1.0, 4)
    identities = np.array([0, 0, 0, 5, 5, 2, 2, 2, 2, 5, 7, 7])
    expected = []
    for person in (0, 2, 5, 7):
        rows = found[identities == person]
        cosines = [rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]
        expected.append(np.mean(cosines))
    assert compactness(found, identities) == pytest.approx(expected)


def test_a_single_image_says_nothing():
    with pytest.raises(ValueError, match="1 of 2 people"):
        compactness(embeddings(np.random.default_rng(0), 1.0, 1), np.array([0, 0, 1]))


def test_the_p_value_is_the_rank_with_the_person_counted():
    never_seen = np.array([0.1, 0.2, 0.3, 0.4])
    for value, p in ((0.5, 1 / 5), (0.4, 2 / 5), (0.25, 3 / 5), (0.0, 1.0)):
        test = membership_test(value, never_seen)
        assert (test.p_value, test.smallest, test.n_never_seen) == (pytest.approx(p), 1 / 5, 4)


def test_auc_is_the_share_of_pairs_ties_half():
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 5, 13).astype(float), rng.integers(0, 5, 7).astype(float)
    expected = np.mean([(h > other) + 0.5 * (h == other) for h in high for other in low])
    assert auc(high, low) == pytest.approx(expected)
    assert auc(np.array([1.0]), np.array([1.0])) == 0.5


def test_people_who_were_not_trained_on_are_seldom_called_a_trace():
    rng = np.random.default_rng(2)
    values = compactness(embeddings(rng, 0.6, 60 * 20), people(60 * 20)).reshape(60, 20)
    p_values = np.array([membership_test(row[0], row[1:]).p_value for row in values])
    assert np.mean(p_values <= 0.1) <= 0.2
    assert abs(p_values.mean() - 0.525) < 0.12, "uniform on 1/20, 2/20, ... 1"


def test_members_are_found_and_after_withdrawal_not():
    rng = np.random.default_rng(3)
    strangers = compactness(embeddings(rng, 0.7, 60), people(60))
    members = compactness(embeddings(rng, 0.2, 30), people(30))
    before = membership_test(members[0], strangers, members[1:], rng)
    assert before.verdict() == "trace" and before.p_value <= 0.05 and before.power > 0.9
    assert before.power_low <= before.power <= before.power_high
    median = float(np.median(strangers))
    assert membership_test(median, strangers, members, rng).verdict() == "no trace"


def test_a_test_without_power_says_so():
    rng = np.random.default_rng(4)
    strangers = rng.normal(size=60)
    median = float(np.median(strangers))
    assert membership_test(median, strangers).verdict() == "cannot tell"
    no_power = membership_test(median, strangers, rng.normal(size=60) - 0.3, rng)
    assert no_power.verdict() == "cannot tell"
    few = membership_test(-9.0, strangers[:10], strangers[:10] + 9, rng)
    assert few.smallest > 0.05 and few.verdict() == "cannot tell"


@pytest.mark.parametrize(
    ("person", "never_seen", "members", "rng"),
    [
        (0.0, np.array([]), None, None),
        (0.0, np.array([np.nan]), None, None),
        (np.nan, np.array([0.0]), None, None),
        (0.0, np.array([0.0]), np.array([0.0]), None),
        (0.0, np.array([0.0]), np.array([]), np.random.default_rng(0)),
        (0.0, np.zeros((2, 2)), None, None),
    ],
)
def test_what_cannot_be_compared_is_refused(person, never_seen, members, rng):
    with pytest.raises(ValueError, match="needs"):
        membership_test(person, never_seen, members, rng)
