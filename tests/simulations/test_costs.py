"""Work is given out by what it cost before, the longest first."""

from itertools import product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine.costs import BUNDLE_SECONDS, ClientCosts, bundle_size, makespan


def test_estimates_follow_the_measurements_by_halves() -> None:
    costs = ClientCosts()
    assert costs.expected(3, "train") == inf
    costs.add(3, "train", 8.0)
    assert costs.expected(3, "train") == 8.0
    costs.add(3, "train", 4.0)
    assert costs.expected(3, "train") == 6.0
    assert costs.expected(3, "evaluate") == inf and costs.expected(4, "train") == inf


def best(costs: list[float], n_workers: int) -> float:
    """The least makespan of all assignments."""
    return min(
        max(sum(c for c, w in zip(costs, who, strict=True) if w == i) for i in range(n_workers))
        for who in product(range(n_workers), repeat=len(costs))
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_it_ends_within_grahams_bound(costs: list[float], n_workers: int) -> None:
    bound = 4 / 3 - 1 / (3 * n_workers)
    least = best(costs, n_workers)
    assert least - 1e-9 <= makespan(costs, n_workers) <= bound * least + 1e-9


def test_one_worker_does_all_and_many_do_the_longest() -> None:
    assert makespan([3.0, 1.0, 2.0], 1) == 6.0
    assert makespan([3.0, 1.0, 2.0], 9) == 3.0
    # 5 4 3 3 3 on two: 5+3, 4+3+3 by the rule; 9 would be best.
    assert makespan([3.0, 5.0, 3.0, 4.0, 3.0], 2) == pytest.approx(10.0)


@given(st.lists(st.floats(1e-4, 1.0) | st.just(inf), min_size=1, max_size=60), st.integers(1, 8))
def test_bundles_hold_everybody_once_and_little_at_a_time(
    seconds: list[float], n_workers: int
) -> None:
    left, sizes = sorted(seconds, reverse=True), []
    while left:
        size = bundle_size(left, len(left), n_workers)
        assert 1 <= size <= max(1, len(left) // (2 * n_workers))
        assert size == 1 or sum(left[:size]) <= BUNDLE_SECONDS
        sizes.append(size)
        left = left[size:]
    assert sum(sizes) == len(seconds)
    assert all(size == 1 for size in sizes[-n_workers:]), "the last ones are spread"


def test_small_clients_take_far_fewer_calls() -> None:
    left, n_calls = 1000, 0
    while left:
        left -= bundle_size([1e-4] * left, left, 2)
        n_calls += 1
    assert n_calls < 40
