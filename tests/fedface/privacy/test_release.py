import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fedface.privacy import gaussian
from fedface.privacy.release import BudgetSpent, EmbeddingRelease, Ledger, sensitivity
from fedface.random import stream

RELEASE = EmbeddingRelease(clip=1.5, epsilon=4, delta=1e-5, n_releases=10)


def chi_square_p(z: torch.Tensor, u: torch.Tensor, sigma: float) -> float:
    """Two-sided: are the residuals N(0, sigma^2)?"""
    residuals = (z - u).double().flatten()
    statistic = float((residuals**2).sum() / sigma**2)
    tail = stats.chi2.cdf(statistic, len(residuals))
    return 2 * min(tail, 1 - tail)


def test_the_noise_has_the_accounted_scale_and_no_other() -> None:
    h = torch.randn(2000, 8, generator=stream(0, "h"))
    u = torch.stack([row * min(1.0, 1.5 / row.norm().item()) for row in h])
    sigma = gaussian.sigma_for(4, 1e-5, 3.0, 10)
    z = RELEASE.release(h, stream(1, "noise"))
    assert chi_square_p(z, u, sigma) > 1e-3
    assert chi_square_p(z, u, sigma * 2 / 3) < 1e-9
    assert chi_square_p(z, u, sigma * 3 / 2) < 1e-9
    assert stats.kstest((z - u).flatten().numpy() / sigma, "norm").pvalue > 1e-3
    correlation = torch.corrcoef((z - u).T)  # independent between coordinates
    assert (correlation - torch.eye(8)).abs().max() < 0.12


def test_noise_is_never_the_same_twice_and_the_stream_decides() -> None:
    h = torch.zeros(4, 3)
    rng = stream(0, "noise")
    first, second = RELEASE.release(h, rng), RELEASE.release(h, rng)
    assert not torch.isclose(first, second).any()
    assert torch.equal(first, RELEASE.release(h, stream(0, "noise")))
    rows = RELEASE.release(torch.zeros(4, 3), stream(2, "noise"))
    assert all(not torch.isclose(a, b).any() for a, b in itertools.combinations(rows, 2))


def test_the_gradient_passes_straight_through_the_noise() -> None:
    h = torch.tensor([[0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    RELEASE.release(h, stream(0, "noise")).sum().backward()
    assert torch.equal(h.grad, torch.ones(2, 2))


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.5, 16),
    st.floats(1e-3, 1e3),
    st.integers(1, 100),
    st.integers(1, 8),
    st.sampled_from(["replace_one", "zero_out"]),
)
def test_the_whole_budget_costs_what_was_asked(
    epsilon: float, clip: float, n_releases: int, n_parties: int, neighbour: str
) -> None:
    release = EmbeddingRelease(
        clip=clip,
        epsilon=epsilon,
        n_releases=n_releases,
        n_parties=n_parties,
        neighbour=neighbour,
    )
    cost = release.cost(n_releases, release.delta)
    assert getattr(cost, neighbour) == pytest.approx(epsilon, rel=1e-8)
    assert cost.zero_out < cost.replace_one
    other = release.model_copy(update={"clip": 1.0})
    assert release.noise / clip == pytest.approx(other.noise, rel=1e-9)  # only sigma / C matters


def test_the_sensitivities() -> None:
    assert sensitivity(1.5, "replace_one") == 3
    assert sensitivity(1.5, "zero_out") == 1.5
    assert sensitivity(1.5, "replace_one", 4) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs sigma or epsilon, and not both, got sigma=None, epsilon=None"),
        ({"sigma": 1, "epsilon": 1}, "and not both, got sigma=1.0, epsilon=1.0"),
        ({"sigma": 0}, "greater than 0"),
        ({"epsilon": -1}, "greater than 0"),
        ({"sigma": 1, "delta": 1}, "less than 1"),
        ({"sigma": 1, "n_releases": 0}, "greater than 0"),
        ({"sigma": 1, "clip": 1e-7}, "greater than or equal to 0.000001"),
        ({"sigma": 1, "neighbour": "add"}, "replace_one"),
        ({"sigma": 1, "sampling_rate": 0.01}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmbeddingRelease(**{"n_releases": 3, **fields})


def test_a_ledger_counts_and_stops_before_the_release() -> None:
    ledger = EmbeddingRelease(sigma=4, n_releases=2).ledger(4)
    assert ledger.spent() == (0, 0)
    ledger = ledger.charge(torch.tensor([0, 2])).charge(torch.tensor([2, 3]))
    assert ledger.counts.tolist() == [1, 0, 2, 1]
    with pytest.raises(BudgetSpent, match=r"n_releases=2 .* 1 record\(s\).* record 2 after 2"):
        ledger.charge(torch.tensor([1, 2]))
    assert ledger.counts.tolist() == [1, 0, 2, 1]
    with pytest.raises(BudgetSpent, match="record 1"):
        ledger.charge(torch.tensor([1, 1, 1]))
    assert ledger.charge(torch.tensor([], dtype=torch.int64)).counts.tolist() == [1, 0, 2, 1]


def test_what_is_spent_is_that_of_the_record_released_most() -> None:
    ledger = EmbeddingRelease(clip=1, sigma=4, n_releases=10).ledger(3)
    for _ in range(10):
        ledger = ledger.charge(torch.tensor([1]))
    spent = ledger.spent(1e-5)
    assert spent.replace_one == pytest.approx(7.5, abs=0.05)  # the epsilon table, z = 4, T = 10
    assert spent.zero_out == pytest.approx(gaussian.epsilon(10**0.5 / 4, 1e-5))
    assert ledger.spent() == spent
    assert ledger.spent(1e-3).replace_one < spent.replace_one


def test_a_ledger_survives_a_checkpoint_and_refuses_another_mechanism() -> None:
    ledger = RELEASE.ledger(3).charge(torch.tensor([0, 0, 2]))
    tensors = ledger.to_tensors()
    again = Ledger.from_tensors(RELEASE, tensors)
    assert torch.equal(again.counts, ledger.counts)
    assert again.spent() == ledger.spent()
    ledger.counts.zero_()
    assert tensors["counts"].tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="needs the mechanism it was kept for"):
        Ledger.from_tensors(RELEASE.model_copy(update={"clip": 2.0}), tensors)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (torch.tensor([3]), r"lie in 0..2, got 3..3"),
        (torch.tensor([-1, 0]), r"got -1..0"),
        (torch.tensor([0.0]), "dtype torch.int64"),
        (torch.tensor([[0]]), r"shape \(batch,\)"),
    ],
)
def test_unknown_records_are_refused(records: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RELEASE.ledger(3).charge(records)


def test_a_ledger_needs_records() -> None:
    with pytest.raises(ValueError, match="n_records >= 1, got 0"):
        RELEASE.ledger(0)


def test_the_statement_says_what_holds_and_what_does_not() -> None:
    text = RELEASE.statement()
    for part in (
        "Per-release local differential privacy for the record's own embedding",
        "every fixed bottom model",
        "C=1.5",
        f"sigma={RELEASE.noise:.4g}",
        "10 release(s)",
        "epsilon=4 under replace-one (sensitivity 2C)",
        f"epsilon={RELEASE.cost(10, 1e-5).zero_out:.4g} under zero-out (sensitivity C)",
        "delta=1e-05, of which replace_one is the accounted one",
        "no amplification by subsampling",
        "neither a record's influence on other records' embeddings",
        "nor the labels",
    ):
        assert part in text
    assert text.count(". ") == 0 and text.endswith(".")
    several = RELEASE.model_copy(update={"n_parties": 3}).statement()
    assert "by 3 parties together" in several
