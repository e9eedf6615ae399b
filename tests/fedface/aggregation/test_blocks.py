import threading

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from pydantic import TypeAdapter
from threadpoolctl import threadpool_info

from fedface.aggregation import AnyAggregator, blocks
from fedface.aggregation.blocks import (
    CELLS,
    Scratch,
    by_columns,
    in_threads,
    inner_products,
    remembered,
    slices,
    sum_by_columns,
)
from tests.fedface.aggregation.properties import aggregate, unequal_cohort


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", [None, 1, 7, 100, 1000])
def test_blocks_cover_every_column_once_and_in_order(block):
    covered = [i for part in slices(5, 100, block) for i in range(100)[part]]
    assert covered == list(range(100))
    assert slices(3, 0) == []


def test_a_block_holds_a_cache_of_numbers_whatever_the_number_of_rows():
    for n_rows in (1, 20, 3000, 10 * CELLS):
        first = slices(n_rows, 10 * CELLS if n_rows < 3000 else 100)[0]
        assert first.stop == 1 or first.stop * n_rows <= CELLS


def test_results_come_in_the_order_of_the_items_whoever_made_them(n_threads):
    together = threading.Barrier(n_threads)

    def work(i):
        together.wait(timeout=10)
        return i * i, threading.get_ident()

    results, makers = zip(*in_threads(work, range(6)), strict=True)
    assert results == (0, 1, 4, 9, 16, 25)
    assert len(set(makers)) == n_threads


def test_an_error_in_a_thread_arrives(n_threads):
    def work(columns):
        if columns.start == 3:
            raise RuntimeError("third")

    with pytest.raises(RuntimeError, match="third"):
        by_columns(work, (1, 5), 1)


def test_linear_algebra_is_held_to_one_thread_and_let_go():
    def limits():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    before = limits()
    (during,) = in_threads(lambda _: limits(), [0])
    assert set(during) == {1} and limits() == before


def test_sums_are_added_in_order_whatever_the_threads(n_threads):
    values = np.array([1e16, 1.0, -1e16, 1.0])
    total = sum_by_columns(lambda columns: values[columns], (1, 4), (1,), 1)
    assert total.tolist() == [((1e16 + 1.0) - 1e16) + 1.0]


def test_scratch_is_kept_per_thread_and_renewed_for_another_shape():
    scratch = Scratch()
    one = scratch.array("a", (3,))
    assert scratch.array("a", (3,)) is one and scratch.array("b", (3,)) is not one
    assert scratch.array("a", (4,)).shape == (4,)
    assert scratch.array("a", (4,), np.float32).dtype == np.float32
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch.array("b", (3,))))
    thread.start()
    thread.join()
    assert others[0] is not scratch.array("b", (3,))
    copy = scratch.exact(np.float32([1, 2]))
    assert copy.dtype == np.float64 and copy.tolist() == [1, 2]


def test_inner_products_have_the_bits_of_the_product():
    rows = np.random.default_rng(0).standard_normal((7, 999))
    assert np.array_equal(inner_products(rows), rows @ rows.T)


def address(array):
    return array.__array_interface__["data"][0]


def test_remembered_memory_is_used_again_when_nobody_holds_it():
    first = remembered((3, 5))
    first[:] = 7
    kept = torch.from_numpy(first)[1:, 2:]
    place = address(first)
    del first
    second = remembered((3, 5))
    assert address(second) != place, "a view of the first is alive"
    second[:] = 8
    assert kept.tolist() == [[7] * 3] * 2
    del kept
    third = remembered((3, 5))
    assert address(third) == place and third.dtype == np.float32 and third.flags.writeable
    del third
    assert remembered((5, 3)).shape == (5, 3) and remembered((3, 5)).shape == (3, 5)


def test_a_state_that_is_held_is_not_written_over():
    """Every round of a rule with a memory, kept: the later ones leave the earlier ones alone."""
    rule, state, kept = TypeAdapter(AnyAggregator).validate_python({"name": "ariba"}), {}, []
    for server_round in range(1, 5):
        cohort = unequal_cohort(seed=server_round)
        _, state = rule(cohort, state)
        kept.append((state["clients/residuals"], state["clients/residuals"].clone()))
    assert all(torch.equal(now, then) for now, then in kept)


NO_MODEL = [
    "ariba",
    "ariba_literal",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "dnc",
    "fltracer_cam",
    "foolsgold",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "norm_clipping",
    "rlr",
    "trimmed_mean",
]


@pytest.mark.parametrize("name", NO_MODEL)
def test_aggregators_give_the_same_bits_on_any_number_of_threads(name, monkeypatch):
    monkeypatch.setattr(blocks, "CELLS", 1 << 12)
    rule = TypeAdapter(AnyAggregator).validate_python({"name": name})
    before, results = torch.get_num_threads(), []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        result, state = rule(unequal_cohort(4), {})
        results.append((result.update, result.trust, *state.values()))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_small_blocks_change_nothing_but_rounding(monkeypatch):
    for name in ("multi_krum", "trimmed_mean", "bulyan", "ariba"):
        rule = TypeAdapter(AnyAggregator).validate_python({"name": name})
        whole = aggregate(rule, unequal_cohort(5))
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "CELLS", 1 << 10)
            parts = aggregate(rule, unequal_cohort(5))
        assert torch.equal(whole.trust == 0, parts.trust == 0)
        assert norm(whole.update - parts.update) <= 1e-6 * norm(whole.update)
