import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.aggregation.weights import client_weights, doubted, weighted_sum


def everyone(n):
    return torch.ones(n, dtype=torch.bool)


def test_weights_follow_the_examples_of_the_survivors():
    weights = client_weights(torch.tensor([10, 20, 30]), torch.tensor([True, False, True]))
    assert weights.dtype == torch.float64
    assert weights.tolist() == [0.25, 0, 0.75]


def test_uniform_weights_ignore_the_examples():
    weights = client_weights(torch.tensor([1, 2, 9]), torch.tensor([True, True, False]), "uniform")
    assert weights.tolist() == [0.5, 0.5, 0]


def test_a_claim_counts_at_most_the_cap_times_the_median():
    counts = torch.tensor([10, 10, 10, 1_000_000])
    assert client_weights(counts, everyone(4))[3] > 0.99
    capped = client_weights(counts, everyone(4), max_weight_ratio=4)
    torch.testing.assert_close(float(capped[3]), 40 / 70)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12), st.integers(1, 6))
def test_no_liar_exceeds_the_stated_bound(honest, cap):
    counts = torch.tensor([*honest, 10**12])
    n = len(counts)
    weights = client_weights(counts, everyone(n), max_weight_ratio=float(cap))
    assert abs(float(weights.sum()) - 1) < 1e-12
    assert float(weights[-1]) <= cap / (cap + -(-n // 2) - 1) + 1e-12


def test_the_bound_is_reached():
    counts = torch.tensor([0, 0, 10, 10, 10**9])
    weights = client_weights(counts, everyone(5), max_weight_ratio=4.0)
    torch.testing.assert_close(float(weights[-1]), 4 / (4 + 3 - 1))


def test_survivors_without_examples_weigh_the_same():
    weights = client_weights(torch.tensor([0, 0, 5]), torch.tensor([True, True, False]))
    assert weights.tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("counts", "survivors", "match"),
    [([1, 2], [False, False], "at least one survivor"), ([1, -2], [True, True], "n_examples >= 0")],
)
def test_impossible_weights_raise(counts, survivors, match):
    with pytest.raises(ValueError, match=match):
        client_weights(torch.tensor(counts), torch.tensor(survivors))


def test_weighted_sum_leaves_untrusted_rows_out():
    updates = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 6.0]])
    trust = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    result = weighted_sum(updates, trust)
    assert result.dtype == torch.float32 and result.tolist() == [2.0, 4.0]


def test_doubt_that_leaves_nobody_is_no_doubt():
    trust, none = torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert torch.equal(doubted(trust, none), trust)
    torch.testing.assert_close(doubted(trust, torch.tensor([0.5, 0.5, 1.0])), trust)
