import numpy as np
import pytest

from fedface.evaluation.scores import choose_images, cosine_scores, pair_scores
from tests.fedface.evaluation.embeddings import cosine, pairs_of, random_people, unit


@pytest.mark.parametrize("block_size", [1, 4, 5, 1024])
def test_pairs_match_the_loops(block_size):
    embeddings, identities = random_people([3, 1, 4, 2])
    pairs = pair_scores(embeddings, identities * 10 - 5, block_size)
    genuine, impostor = pairs_of(embeddings, identities)
    np.testing.assert_allclose(np.sort(pairs.genuine), np.sort(genuine), atol=1e-11)
    np.testing.assert_allclose(np.sort(pairs.impostor), np.sort(impostor), atol=1e-11)
    np.testing.assert_array_equal(pairs.n_images, [3, 1, 4, 2])


@pytest.mark.parametrize("block_size", [3, 1024])
def test_each_score_carries_its_identities(block_size):
    embeddings, identities = random_people([3, 1, 4, 2])
    pairs = pair_scores(embeddings, identities, block_size)
    found = {
        (int(a), int(b), round(float(s), 9))
        for (a, b), s in zip(pairs.impostor_identities, pairs.impostor, strict=True)
    } | {
        (int(a), int(a), round(float(s), 9))
        for a, s in zip(pairs.genuine_identities, pairs.genuine, strict=True)
    }
    expected = {
        (
            *sorted((int(identities[i]), int(identities[j]))),
            round(cosine(embeddings[i], embeddings[j]), 9),
        )
        for i in range(10)
        for j in range(i + 1, 10)
    }
    assert found == expected


def test_permuting_the_images_changes_nothing():
    embeddings, identities = random_people([3, 1, 4, 2])
    order = np.random.default_rng(1).permutation(10)
    a = pair_scores(embeddings, identities)
    b = pair_scores(embeddings[order], identities[order], block_size=3)
    np.testing.assert_array_equal(np.sort(a.genuine), np.sort(b.genuine))
    np.testing.assert_array_equal(np.sort(a.impostor), np.sort(b.impostor))


def test_equal_images_tie_exactly():
    embeddings = np.tile(random_people([1], dim=37)[0], (53, 1))
    assert len(np.unique(embeddings.astype(np.float64) @ embeddings.astype(np.float64).T)) > 1
    assert len(np.unique(cosine_scores(embeddings, embeddings))) == 1
    assert len(np.unique(pair_scores(embeddings, np.arange(53) // 2, 10).impostor)) == 1


@pytest.mark.parametrize(("n_images", "n_genuine", "n_impostor"), [([1], 0, 0), ([1, 1], 0, 1)])
def test_small_sets(n_images, n_genuine, n_impostor):
    pairs = pair_scores(*random_people(n_images))
    assert len(pairs.genuine) == n_genuine and len(pairs.impostor) == n_impostor
    assert pairs.impostor_identities.shape == (n_impostor, 2)


@pytest.mark.parametrize(
    ("embeddings", "identities", "message"),
    [
        (np.ones((2, 3)), np.arange(2), "length 1"),
        (np.full((2, 1), np.nan), np.arange(2), "length 1"),
        (np.ones((2, 1)), np.arange(3), "shape"),
        (np.ones(2), np.arange(2), "shape"),
        (np.ones((2, 1)), np.arange(2.0), "integer"),
    ],
)
def test_refuses_what_is_no_embedding(embeddings, identities, message):
    with pytest.raises(ValueError, match=message):
        pair_scores(embeddings, identities)


def test_accepts_float32_and_half_precision_rounding():
    embeddings = unit(np.random.default_rng(0).normal(size=(5, 512)))
    pair_scores(embeddings.astype(np.float16), np.arange(5))
    with pytest.raises(ValueError, match="length 1"):
        pair_scores(embeddings * 1.002, np.arange(5))


def test_chosen_images_keep_people_together():
    _, identities = random_people([5] * 20)
    for seed in range(20):
        chosen = choose_images(identities, 33, np.random.default_rng(seed))
        assert len(np.unique(chosen)) == 33 and np.all(np.diff(chosen) > 0)
        counts = np.bincount(identities[chosen], minlength=20)
        assert sorted(counts[counts > 0]) == [3, 5, 5, 5, 5, 5, 5]


def test_chosen_images_are_fair_and_reproducible():
    identities = np.repeat(np.arange(10), 2)
    rng = np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(2000):
        counts += np.bincount(identities[choose_images(identities, 4, rng)], minlength=10)
    assert np.all(np.abs(counts / 2000 - 0.4) < 0.08)
    first = choose_images(identities, 7, np.random.default_rng(3))
    np.testing.assert_array_equal(first, choose_images(identities, 7, np.random.default_rng(3)))


def test_more_images_than_there_are():
    np.testing.assert_array_equal(
        choose_images(np.array([4, 4, 9]), 8, np.random.default_rng(0)), [0, 1, 2]
    )
    with pytest.raises(ValueError, match="max_images"):
        choose_images(np.array([4, 4, 9]), 1, np.random.default_rng(0))
