import json
from dataclasses import asdict

import numpy as np
import pytest

from fedface.evaluation.identification import evaluate_identification, probe_ranks
from tests.fedface.evaluation.embeddings import cosine, random_people, unit


def loop_ranks(embeddings, identities):
    gallery = {}
    ranks = []
    for i, identity in enumerate(identities):
        gallery.setdefault(int(identity), i)
    for i, identity in enumerate(identities):
        if gallery[int(identity)] == i:
            continue
        own = cosine(embeddings[i], embeddings[gallery[int(identity)]])
        others = [cosine(embeddings[i], embeddings[g]) for k, g in gallery.items() if k != identity]
        ranks.append(1 + sum(1 for s in others if s >= own))
    return ranks


@pytest.mark.parametrize("block_size", [1, 7, 1024])
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_ranks_match_the_loops(block_size, noise):
    embeddings, identities = random_people([3, 1, 4, 2, 5, 1], noise)
    ranks, own = probe_ranks(embeddings, identities * 2 + 3, block_size)
    assert list(ranks) == loop_ranks(embeddings, identities)
    np.testing.assert_array_equal(np.bincount(own, minlength=6), [2, 0, 3, 1, 4, 0])


def test_report_is_the_share_of_ranks():
    embeddings, identities = random_people([3, 1, 4, 2, 5, 1], noise=3.0)
    ranks = np.array(loop_ranks(embeddings, identities))
    result = evaluate_identification(
        embeddings, identities, (1, 3, 6), 100, np.random.default_rng(0)
    )
    assert [r.rate for r in result.rates] == [np.mean(ranks <= k) for k in (1, 3, 6)]
    assert result.rates[0].rate < result.rates[1].rate < result.rates[2].rate == 1
    assert (result.n_gallery, result.n_probes) == (6, 10)
    assert all(r.low <= r.rate <= r.high for r in result.rates)
    json.dumps(asdict(result), allow_nan=False)


def test_the_first_image_is_the_gallery():
    embeddings = unit([[1, 0], [0, 1], [1, 0.1], [1, 0.2], [0, 1]])
    identities = np.array([5, 2, 5, 2, 2])
    ranks, own = probe_ranks(embeddings, identities)
    assert list(ranks) == [1, 2, 1] and list(own) == [1, 0, 0]


def test_a_collapsed_model_identifies_nobody():
    embeddings = np.tile(random_people([1], dim=37)[0], (40, 1))
    result = evaluate_identification(
        embeddings, np.arange(40) // 4, (1, 9, 10), 100, np.random.default_rng(0)
    )
    assert [r.rate for r in result.rates] == [0, 0, 1]


def test_one_identity_is_always_first():
    result = evaluate_identification(*random_people([3]), (1,), 100, np.random.default_rng(0))
    assert result.rates[0].rate == 1 and result.n_gallery == 1


@pytest.mark.parametrize(
    ("n_images", "rank", "message"),
    [([1, 1], 1, "two images"), ([2, 2], 3, "1..n_gallery=2"), ([2, 2], 0, "1..n_gallery=2")],
)
def test_refuses(n_images, rank, message):
    with pytest.raises(ValueError, match=message):
        evaluate_identification(*random_people(n_images), (rank,), 100, np.random.default_rng(0))
