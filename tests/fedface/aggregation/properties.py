"""Cohorts for tests, and what every aggregator must keep."""

import math

import torch
from torch import Tensor
from torch.testing import assert_close

from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort
from fedface.parameters import Layout

LAYOUT = Layout.from_shapes(
    {
        "conv1.weight": (16, 3, 3, 3),
        "conv1.bias": (16,),
        "norm1.weight": (16,),
        "conv2.weight": (32, 16, 3, 3),
        "fc.weight": (64, 128),
        "fc.bias": (64,),
    }
)


def random_updates(n_clients: int = 9, dim: int = LAYOUT.dim, seed: int = 0) -> Tensor:
    return torch.randn(n_clients, dim, generator=torch.Generator().manual_seed(seed))


def make_cohort(
    updates: Tensor,
    n_examples: Tensor | None = None,
    n_steps: Tensor | None = None,
    layout: Layout | None = None,
    **fields,
) -> Cohort:
    n_clients, dim = updates.shape
    if layout is None:
        layout = LAYOUT if dim == LAYOUT.dim else Layout.from_shapes({"weight": (1, dim)})
    n_examples = torch.full((n_clients,), 100) if n_examples is None else n_examples
    n_steps = torch.full((n_clients,), 10) if n_steps is None else n_steps
    fields = {"client_ids": tuple(range(n_clients)), "seed": 3, **fields}
    return Cohort(updates, layout, n_examples, n_steps, **fields)


def unequal_cohort(seed: int, n_clients: int = 20, length_noise: float = 0.1) -> Cohort:
    """Honest sites: a consensus, own directions, length proportional to steps (up to 3 x)."""
    g = torch.Generator().manual_seed(seed)
    steps = (20 * torch.exp(torch.rand(n_clients, generator=g) * math.log(3))).round()
    updates = 0.3 * torch.randn(LAYOUT.dim, generator=g)
    updates = updates + torch.randn(n_clients, LAYOUT.dim, generator=g)
    lengths = steps / 20 * torch.exp(length_noise * torch.randn(n_clients, generator=g))
    steps = steps.long()
    return make_cohort(updates * lengths[:, None], 16 * steps, steps, seed=seed)


def aggregate(aggregator: Aggregator, cohort: Cohort) -> Aggregation:
    return aggregator(cohort, {})[0]


def assert_permutation_equivariant(aggregator: Aggregator) -> None:
    cohort = unequal_cohort(0)
    cohort.updates[4] *= 5
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = make_cohort(
        cohort.updates[order], cohort.n_examples[order], cohort.n_steps[order], seed=cohort.seed
    )
    one, other = aggregate(aggregator, cohort), aggregate(aggregator, shuffled)
    assert_close(other.update, one.update)
    assert_close(other.trust, one.trust[order])
    if one.scores is not None:
        assert_close(other.scores, one.scores[order])
    for name, scores in one.layer_scores.items():
        assert_close(other.layer_scores[name], scores[order])


def assert_unanimous(aggregator: Aggregator) -> None:
    updates = random_updates(1).expand(9, -1).contiguous()
    steps = torch.arange(1, 10)
    result = aggregate(aggregator, make_cohort(updates, 16 * steps, steps))
    assert_close(result.update, updates[0])
    assert_close(result.trust.sum(), torch.tensor(1.0, dtype=torch.float64))


def assert_survives_zeros(aggregator: Aggregator) -> None:
    result = aggregate(aggregator, make_cohort(torch.zeros(9, LAYOUT.dim)))
    assert_close(result.update, torch.zeros(LAYOUT.dim))
    assert result.scores is None or bool(result.scores.isfinite().all())


def assert_does_not_modify(aggregator: Aggregator) -> None:
    cohort, same = unequal_cohort(0), unequal_cohort(0)
    _, state = aggregator(cohort, {})
    copies = {key: value.clone() for key, value in state.items()}
    aggregator(cohort, state)
    for name in ("updates", "n_examples", "n_steps"):
        assert_close(getattr(cohort, name), getattr(same, name), rtol=0, atol=0)
    assert state.keys() == copies.keys()
    for key, value in copies.items():
        assert_close(state[key], value, rtol=0, atol=0)


def assert_repeats(aggregator: Aggregator) -> None:
    one, other = (aggregate(aggregator, unequal_cohort(2)) for _ in range(2))
    assert torch.equal(one.update, other.update)
    assert torch.equal(one.trust, other.trust)


def assert_trust_is_a_distribution(aggregator: Aggregator) -> None:
    for n_clients in (1, 2, 3, 4, 20):
        cohort = unequal_cohort(1, n_clients)
        trust = aggregate(aggregator, cohort).trust
        assert trust.dtype == torch.float64 and trust.shape == (n_clients,)
        assert bool((trust >= 0).all()) and abs(float(trust.sum()) - 1) < 1e-12


PROPERTIES = [
    assert_permutation_equivariant,
    assert_unanimous,
    assert_survives_zeros,
    assert_does_not_modify,
    assert_repeats,
    assert_trust_is_a_distribution,
]
