from itertools import product

import numpy as np
import pytest

from fedface.aggregation.blocks import Scratch
from fedface.aggregation.order_statistics import mean_of, network, ranked, within


def columns(n, width=200, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 20, 31, 50])
def test_ranks_are_those_of_a_sort(n):
    values = columns(n)
    ordered, copy = np.sort(values, axis=0), values.copy()
    for first, last in {
        (0, n - 1),
        (0, 0),
        (n - 1, n - 1),
        ((n - 1) // 2, n // 2),
        (n // 3, n // 2),
    }:
        found = ranked(values, first, last, Scratch())
        assert np.array_equal(found, ordered[first : last + 1])
    assert np.array_equal(values, copy)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_network_sorts_every_pattern_of_zeros_and_ones(n):
    """Knuth's zero-one principle: a network that sorts these sorts everything."""
    patterns = np.array(list(product((0.0, 1.0), repeat=n))).T
    for rank in range(n):
        (found,) = ranked(patterns, rank, rank, Scratch())
        assert np.array_equal(found, np.sort(patterns, axis=0)[rank])


def test_comparators_that_no_rank_needs_are_left_out():
    whole, middle = network(20, 0, 19), network(20, 9, 10)
    assert all(lower and upper for _, _, lower, upper in whole)
    halves = sum(lower + upper for _, _, lower, upper in middle)
    assert len(middle) < len(whole) and halves < 0.75 * 2 * len(whole)
    assert network(1, 0, 0) == ()


def test_equal_values_infinities_and_extremes_are_ordered():
    values = np.float32([[3e38, 1, 0], [-3e38, 1, np.inf], [0, 1, -np.inf], [0, 2, 5]])
    assert np.array_equal(ranked(values, 0, 3, Scratch()), np.sort(values, axis=0))


def test_the_mean_of_rows_is_taken_in_double_precision():
    rows = np.float32([[1e8, 1], [1, 2], [-1e8, 3]])
    assert mean_of(rows, Scratch()).tolist() == [1 / 3, 2]
    assert rows[0, 0] == np.float32(1e8)


def test_values_within_a_range_count_with_both_ends():
    rows = np.float32([[0, 1, 2], [1, 1, 9], [5, 1, 3]])
    low, high = np.float32([0, 1, 2]), np.float32([1, 1, 3])
    loops = [sum(a <= x <= b for x, a, b in zip(row, low, high, strict=True)) for row in rows]
    assert within(rows, low, high, Scratch()).tolist() == loops == [3, 2, 2]
