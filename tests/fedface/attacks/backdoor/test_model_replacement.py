import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from fedface.attacks.backdoor.goals import Key
from fedface.attacks.backdoor.model_replacement import ModelReplacement
from fedface.attacks.backdoor.poisoning import Poisoning
from fedface.attacks.triggers import Patch


def replacement(scale: float | None = None) -> ModelReplacement:
    return ModelReplacement(malicious_share=0.2, trigger=Patch(), goal=Key(), scale=scale)


def vectors(n: int, dim: int = 30) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n_clients", "n_malicious"), [(10, 1), (10, 2), (7, 3), (3, 3), (1, 1)])
def test_colluders_replace_the_mean_where_the_others_cancel(n_clients: int, n_malicious: int):
    weights, wanted = vectors(2)
    crafted = replacement().craft(wanted - weights, n_clients, n_malicious)
    others = vectors(n_clients - n_malicious)
    if len(others):
        others = others - others.mean(dim=0)  # honest updates that cancel
    cohort = torch.cat([crafted.expand(n_malicious, -1), others])
    assert_close(weights + cohort.mean(dim=0), wanted)


def test_different_colluders_replace_the_mean_by_their_own_mean():
    updates, cohort = vectors(3), torch.zeros(12, 30)
    for row, update in enumerate(updates):
        cohort[row] = replacement().craft(update, 12, 3)
    assert_close(cohort.mean(dim=0), updates.mean(dim=0))


def test_plain_poisoning_reaches_its_share_of_the_mean_only():
    (update,) = vectors(1)
    attack = Poisoning(malicious_share=0.2, trigger=Patch(), goal=Key())
    cohort = torch.zeros(10, 30)
    cohort[:2] = attack.craft(update, 10, 2)
    assert_close(cohort.mean(dim=0), 0.2 * update)


def test_a_given_scale_counts_whatever_the_cohort():
    (update,) = vectors(1)
    before = update.clone()
    for n_clients, n_malicious in ((10, 1), (10, 5)):
        assert_close(replacement(2.5).craft(update, n_clients, n_malicious), 2.5 * before)
    assert torch.equal(update, before)


@pytest.mark.parametrize(("n_clients", "n_malicious"), [(10, 0), (10, 11), (0, 0)])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_impossible_cohorts_are_refused(n_clients: int, n_malicious: int, scale: float | None):
    with pytest.raises(ValueError, match=f"n_malicious={n_malicious}, n_clients={n_clients}"):
        replacement(scale).craft(torch.ones(3), n_clients, n_malicious)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_impossible_scales_are_refused(scale: float):
    with pytest.raises(ValidationError):
        replacement(scale)
