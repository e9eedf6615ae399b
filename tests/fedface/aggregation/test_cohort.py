import pytest
import torch

from fedface.aggregation.cohort import Aggregator, Cohort
from fedface.parameters import Layout

LAYOUT = Layout.from_shapes({"fc.weight": (2, 3)})


def cohort(n_clients=3, dim=6, ids=None, n_examples=None, n_steps=None):
    return Cohort(
        torch.zeros(n_clients, dim),
        LAYOUT,
        torch.ones(n_clients if n_examples is None else n_examples),
        torch.ones(n_clients if n_steps is None else n_steps),
        tuple(range(n_clients)) if ids is None else ids,
    )


def test_a_cohort_speaks_of_the_same_clients_throughout():
    assert cohort(ids=(0, 4, 9)).client_ids == (0, 4, 9)
    assert cohort(1).updates.shape == (1, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_clients": 0}, r"shape \(n_clients >= 1, 6\), got \(0, 6\)"),
        ({"dim": 5}, r"shape \(n_clients >= 1, 6\), got \(3, 5\)"),
        ({"n_examples": 2}, "n_examples needs length 3, got 2"),
        ({"n_steps": 4}, "n_steps needs length 3, got 4"),
        ({"ids": (0, 1)}, "client_ids needs length 3, got 2"),
        ({"ids": (0, 2, 1)}, "client_ids need to ascend, each once"),
        ({"ids": (0, 1, 1)}, "client_ids need to ascend, each once"),
    ],
)
def test_contradictions_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        cohort(**wrong)


def test_the_contract_itself_aggregates_nothing():
    with pytest.raises(NotImplementedError):
        Aggregator()(cohort(), {})
