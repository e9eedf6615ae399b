"""The Poisson binomial release: what is sent, what it costs, what an audit finds."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from fedface.backbones import SmallConv
from fedface.config import ConfigError, parse_config
from fedface.privacy import BudgetSpent, Ledger, PoissonBinomialRelease, binomial
from fedface.privacy.audit import audit
from fedface.random import numpy_stream, stream
from fedface.vertical.channel import Channel
from fedface.vertical.passive import PassiveSettings
from fedface.vertical.scale import NoScale

RELEASE = PoissonBinomialRelease(clip=2.0, dim=3, n_trials=8, theta=0.2, n_releases=4)


def sent(x: float, n: int, release: PoissonBinomialRelease = RELEASE) -> torch.Tensor:
    return release.release(torch.full((n, release.dim), x), stream(0, "noise"))


@pytest.mark.parametrize("x", [-5.0, -2.0, -0.7, 0.0, 2.0])
def test_each_coordinate_is_a_binomial_count_of_the_clipped_value(x: float) -> None:
    z = sent(x, 4000).double()
    clipped = max(-2.0, min(2.0, x))
    ones = z * (0.2 * 8 / 2.0) + 4
    assert torch.allclose(ones, ones.round(), atol=1e-5)
    counts = np.bincount(ones.round().long().reshape(-1).numpy(), minlength=9)
    expected = 12_000 * binom.pmf(np.arange(9), 8, 0.5 + 0.2 * clipped / 2)
    kept = expected > 5
    observed = np.append(counts[kept], counts[~kept].sum())
    wanted = np.append(expected[kept], expected[~kept].sum())
    observed, wanted = (v[wanted > 0] for v in (observed, wanted))
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4
    assert float(z.mean()) == pytest.approx(clipped, abs=5 * RELEASE.noise / math.sqrt(12_000))
    assert float(z.std()) <= RELEASE.noise * 1.05
    assert not torch.equal(z[0], z[1]) or not torch.equal(z[1], z[2])  # fresh for every row


def test_nothing_of_the_embedding_is_in_the_rounding_and_the_gradient_passes_straight() -> None:
    h = torch.tensor([[0.123456, -9.0, 1.99]], requires_grad=True)
    RELEASE.release(h, stream(0, "noise")).backward(torch.tensor([[1.0, 2.0, 3.0]]))
    assert h.grad is not None and h.grad.tolist() == [[1.0, 0.0, 3.0]]  # clipped: no gradient
    odd = PoissonBinomialRelease(clip=1.7, dim=3, n_trials=7, theta=0.31, n_releases=1)
    many = torch.randn(3000, 3, generator=stream(0, "h"), requires_grad=True)
    z = odd.release(many, stream(0, "noise")).detach()
    assert len(torch.unique(z)) == 8  # one number for each count


def test_the_same_stream_repeats_and_the_next_does_not() -> None:
    h = torch.zeros(50, 3)
    rng = stream(1, "noise")
    first, second = RELEASE.release(h, rng), RELEASE.release(h, rng)
    assert torch.equal(first, RELEASE.release(h, stream(1, "noise")))
    assert not torch.equal(first, second)
    assert RELEASE.release(h.double(), rng).dtype == torch.float64


def test_the_cost_is_that_of_all_bits_of_all_releases_and_parties() -> None:
    two = RELEASE.model_copy(update={"n_parties": 2})
    cost = two.cost(3, 1e-4)
    bits = 3 * 8 * 3 * 2
    assert cost.replace_one == binomial.epsilon(0.2, bits, "replace_one", 1e-4)
    assert cost.zero_out == binomial.epsilon(0.2, bits, "zero_out", 1e-4)
    assert cost.zero_out < cost.replace_one
    assert f"epsilon={two.cost(4, 1e-5).replace_one:.4g}" in two.statement()


@pytest.mark.parametrize("neighbour", ["replace_one", "zero_out"])
def test_theta_follows_from_epsilon(neighbour: str) -> None:
    made = PoissonBinomialRelease(dim=8, epsilon=4.0, n_releases=2, neighbour=neighbour)  # type: ignore[arg-type]
    assert getattr(made.cost(2, 1e-5), neighbour) == pytest.approx(4.0, rel=1e-6)
    assert 0 < made.tilt < 0.5
    assert made.noise == pytest.approx(1 / (2 * made.tilt * 4))


def test_an_audit_stays_under_the_account_and_finds_a_wrong_theta() -> None:
    """The best distinguisher of two corners counts all ones; theta doubled is found out."""
    claimed = PoissonBinomialRelease(dim=4, n_trials=4, epsilon=2.0, n_releases=1)
    cheating = claimed.model_copy(update={"epsilon": None, "theta": 2 * claimed.tilt})
    found = {}
    for name, used in (("honest", claimed), ("cheating", cheating)):
        rng = stream(3, "audit", name)
        ones, zeros = torch.ones(20_000, 4), -torch.ones(20_000, 4)
        scores = [used.release(h, rng).sum(1).double().numpy() for h in (ones, zeros)]
        found[name] = audit(*scores, 1e-5, numpy_stream(3, "audit", name)).epsilon
    assert 0.8 < found["honest"] <= 2.0 < found["cheating"]


def test_honest_embeddings_pass_the_channel_and_long_ones_do_not() -> None:
    release = PoissonBinomialRelease(dim=16, n_trials=4, theta=0.1, n_releases=1)
    channel = Channel("right", 16, release.bound, release.noise)
    corner = release.release(torch.ones(2000, 16), stream(0, "noise"))
    channel.check(corner, 2000)
    with pytest.raises(ValueError, match="party right needs to send embeddings clipped"):
        channel.check(corner * 4, 2000)


def test_the_ledger_counts_and_knows_its_mechanism() -> None:
    ledger = RELEASE.ledger(2)
    for _ in range(4):
        ledger = ledger.charge(torch.tensor([0]))
    with pytest.raises(BudgetSpent):
        ledger.charge(torch.tensor([0]))
    assert ledger.spent() == RELEASE.cost(4, 1e-5)
    again = Ledger.from_tensors(RELEASE, ledger.to_tensors())
    assert torch.equal(again.counts, ledger.counts)
    # The same noise from other bits is another mechanism.
    other = RELEASE.model_copy(update={"n_trials": 2, "theta": 0.4})
    assert other.noise == pytest.approx(RELEASE.noise)
    with pytest.raises(ValueError, match="the mechanism it was kept for"):
        Ledger.from_tensors(other, ledger.to_tensors())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "theta or epsilon, and not both"),
        ({"theta": 0.1, "epsilon": 1.0}, "theta or epsilon, and not both"),
        ({"theta": 0.5}, "theta"),
        ({"theta": 0.1, "n_trials": 1 << 20, "n_releases": 10_000}, "n_releases \\* n_parties <="),
    ],
)
def test_impossible_settings_are_refused(content: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config({"dim": 4, "n_releases": 1, **content}, PoissonBinomialRelease, "x")


def test_a_passive_party_needs_the_dimension_of_its_backbone() -> None:
    conv = SmallConv(widths=(4, 4, 8, 8), embedding_size=8)
    with pytest.raises(ValueError, match=r"release\.dim needs to be .* 8, got 3"):
        PassiveSettings(backbone=conv, release=RELEASE)
    release = PoissonBinomialRelease(dim=8, theta=0.2, n_releases=2)
    party = PassiveSettings(backbone=conv, release=release, scale=NoScale()).build(
        16, 5, stream(0, "party")
    )
    rows = torch.tensor([0, 1, 2, 3])
    z = party.embed(torch.randn(4, 3, 16, 16, generator=stream(0, "x")), rows, stream(0, "n"))
    before = party.bottom.fc.weight.clone()  # type: ignore[union-attr,operator]
    party.backward(torch.ones_like(z))
    assert not torch.equal(party.bottom.fc.weight, before)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embeddings of dim=8, got 3"):
        release.release(torch.zeros(2, 3), stream(0, "n"))
