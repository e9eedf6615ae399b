import pytest
import torch
from pydantic import ValidationError

from fedface.aggregation.mean import Mean
from tests.fedface.aggregation.properties import (
    PROPERTIES,
    aggregate,
    make_cohort,
    random_updates,
)


def fedavg(updates, counts):
    """McMahan et al., algorithm 1, in loops: the sum of n_k / n times the update of client k."""
    total = sum(counts)
    return torch.tensor(
        [
            sum(float(u[j]) * n for u, n in zip(updates, counts, strict=True)) / total
            for j in range(updates.shape[1])
        ]
    )


def test_mean_matches_the_paper():
    updates, counts = random_updates(5, 12), [3, 1, 4, 1, 50]
    cohort = make_cohort(updates, torch.tensor(counts))
    torch.testing.assert_close(aggregate(Mean(), cohort).update, fedavg(updates, counts))
    uniform = aggregate(Mean(weighting="uniform"), cohort)
    torch.testing.assert_close(uniform.update, fedavg(updates, [1] * 5))
    assert uniform.scores is None


def test_a_cap_stops_a_liar_whom_plain_fedavg_believes():
    updates = torch.cat((torch.zeros(9, 4), torch.ones(1, 4)))
    cohort = make_cohort(updates, torch.tensor([10] * 9 + [10**7]))
    assert float(aggregate(Mean(), cohort).update.max()) > 0.99
    capped = aggregate(Mean(max_weight_ratio=4), cohort).update
    torch.testing.assert_close(capped, torch.full((4,), 4 / 13))


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Mean(max_weight_ratio=0.5)


def test_state_passes_through():
    state = {"x": torch.ones(1)}
    assert Mean()(make_cohort(random_updates(3, 4)), state)[1] is state


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_property(prop, weighting):
    prop(Mean(weighting=weighting))
