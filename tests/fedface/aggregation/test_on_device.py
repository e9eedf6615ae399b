"""The path of a GPU, taken on the CPU: the same results but for rounding."""

import pytest
import torch
from pydantic import TypeAdapter

from fedface.aggregation import AnyAggregator, on_device
from fedface.aggregation.distances import gram, products_with
from fedface.aggregation.on_device import aggregating_on, chosen_device
from fedface.aggregation.trimmed_mean import trimmed_mean
from fedface.aggregation.weights import weighted_sum
from tests.fedface.aggregation.properties import aggregate, random_updates, unequal_cohort
from tests.fedface.aggregation.test_blocks import NO_MODEL

CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(on_device, "BLOCK", 400)
    return request.param


def on(device, work, *arguments, **named):
    with aggregating_on(device):
        return work(*arguments, **named)


@pytest.mark.parametrize("chosen", [None, torch.tensor([4, 0, 3])])
@pytest.mark.parametrize("origin", [None, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_inner_products_agree(device, chosen, origin, exact):
    rows = random_updates(6, 999)
    settings = {"origin": origin, "chosen": chosen, "exact": exact}
    found, expected = on(device, gram, rows, **settings), gram(rows, **settings)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9 if exact else 1e-5, atol=1e-4)


@pytest.mark.parametrize("vector", [None, random_updates(1, 999, seed=5)[0]])
def test_products_with_a_vector_agree(device, vector):
    rows = random_updates(6, 999)
    torch.testing.assert_close(on(device, products_with, rows, vector), products_with(rows, vector))
    huge = torch.full((1, 4), 1e38)
    assert on(device, products_with, huge, None).isfinite().all()


def test_weighted_sums_agree_and_leave_out_who_has_no_weight(device):
    rows, trust = random_updates(5, 999), torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0]).double()
    rows[1] = torch.inf
    torch.testing.assert_close(on(device, weighted_sum, rows, trust), weighted_sum(rows, trust))


@pytest.mark.parametrize(("n", "n_trimmed"), [(7, 3), (8, 3), (8, 0), (9, 2)])
def test_trimmed_means_agree_in_values_and_shares(device, n, n_trimmed):
    rows = random_updates(n, 999)
    rows[:, :50] = rows[:, :50].round()  # equal values
    found, expected = on(device, trimmed_mean, rows, n_trimmed), trimmed_mean(rows, n_trimmed)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("name", NO_MODEL)
def test_every_rule_gives_the_same_update_and_trust(device, name):
    rule, cohort = (
        TypeAdapter(AnyAggregator).validate_python({"name": name}),
        unequal_cohort(seed=0),
    )
    expected, found = aggregate(rule, cohort), on(device, aggregate, rule, cohort)
    torch.testing.assert_close(found.update, expected.update, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.trust, expected.trust, rtol=1e-4, atol=1e-6)


def test_the_device_is_forgotten_afterwards_and_after_an_error():
    assert chosen_device() is None
    on("cpu", lambda: None)
    assert chosen_device() is None
    with pytest.raises(ZeroDivisionError):
        on("cpu", lambda: 1 / (chosen_device() != CPU))
    assert chosen_device() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="needs a GPU that torch can use, found none"):
        on("cuda", gram, random_updates(2, 3))
