import pytest
import torch
from torch import nn

from fedface.backbones import SmallConv
from fedface.privacy import BudgetSpent, EmbeddingRelease, UnclippedNoise, Unprotected
from fedface.random import stream
from fedface.training.optimizers import SGD
from fedface.vertical.passive import PassiveParty, PassiveSettings
from fedface.vertical.scale import Learnable, NoScale, Quantile, Sphere

BUDGET = EmbeddingRelease(clip=2.0, sigma=0.5, n_releases=2)


def party(release=BUDGET, scale=None, n_records: int = 6, **optimizer) -> PassiveParty:
    settings = PassiveSettings(
        release=release,
        scale=scale or (Sphere() if release.bound else NoScale()),
        optimizer=SGD(**{"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0, **optimizer}),
    )
    bottom = nn.Linear(3, 4)
    nn.init.normal_(bottom.weight, generator=stream(0, "weights"))
    nn.init.zeros_(bottom.bias)
    return PassiveParty(bottom, 4, settings, n_records)


def features(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, generator=stream(seed, "features"))


FIRST = torch.tensor([0, 1, 2])


def test_backward_is_one_step_of_sgd_straight_through_the_noise() -> None:
    one = party(momentum=0.0)
    before = one.bottom.weight.detach().clone()
    z = one.embed(features(), FIRST, stream(0, "noise"))
    assert not z.requires_grad
    gradient = torch.randn(3, 4, generator=stream(0, "gradient"))
    one.backward(gradient)
    weight = before.clone().requires_grad_()
    h = features() @ weight.T
    (2.0 * h / h.norm(dim=1, keepdim=True) * gradient).sum().backward()
    assert torch.allclose(one.bottom.weight, before - 0.1 * weight.grad, atol=1e-6)


def test_what_is_sent_is_clipped_noised_and_fresh() -> None:
    one, rng = party(), stream(0, "noise")
    first = one.embed(features(), FIRST, rng)
    second = one.embed(features(), FIRST, rng)
    assert not torch.isclose(first, second).any()
    h = one.bottom(features())
    u = 2.0 * h / h.norm(dim=1, keepdim=True)
    noise = 0.5 * torch.randn(3, 4, generator=stream(0, "noise"))
    assert torch.allclose(first, u + noise, atol=1e-5)


def test_the_budget_stops_the_release_before_it_happens() -> None:
    one, rng = party(), stream(0, "noise")
    one.embed(features(), FIRST, rng)
    one.embed(features(), FIRST, rng)
    state = rng.get_state()
    with pytest.raises(BudgetSpent, match="record 2"):
        one.embed(features(2), torch.tensor([2, 3]), rng)
    assert torch.equal(rng.get_state(), state)  # not a number was drawn
    assert one.ledger.counts.tolist() == [2, 2, 2, 0, 0, 0]
    one.embed(features(2), torch.tensor([4, 3]), rng)


def test_inference_releases_once_and_repeats() -> None:
    one, rng = party(), stream(0, "noise")
    twice = torch.tensor([3, 4, 3])
    batch = features(3)
    batch[2] = batch[0]
    z = one.embed_once(batch, twice, rng)
    assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert one.ledger.counts.tolist() == [0, 0, 0, 1, 1, 0]
    more = one.embed_once(torch.cat([features(1, 9), batch]), torch.tensor([5, 3, 4, 3]), rng)
    assert torch.equal(more[1:], z)
    assert one.ledger.counts.tolist() == [0, 0, 0, 1, 1, 1]
    one.forget()
    again = one.embed_once(batch, twice, rng)
    assert not torch.isclose(again, z).any()
    assert one.ledger.counts.tolist() == [0, 0, 0, 2, 2, 1]
    one.forget()
    with pytest.raises(BudgetSpent):
        one.embed_once(batch, twice, rng)


def test_inference_runs_in_evaluation_mode_and_asks_for_no_gradient() -> None:
    one = party(scale=Quantile())
    one.embed_once(features(), FIRST, stream(0, "noise"))
    assert int(one.scale.n_batches) == 0
    with pytest.raises(ValueError, match="that waits for it, got none"):
        one.backward(torch.zeros(3, 4))


def test_a_resumed_party_does_what_it_would_have_done() -> None:
    one, rng = party(scale=Learnable(initial=0.1)), stream(0, "noise")
    one.embed(features(), FIRST, rng)
    one.backward(torch.ones(3, 4))
    shown = one.embed_once(features(1), torch.tensor([5]), rng)
    tensors = one.tensors()
    other = party(scale=Learnable(initial=0.1))
    other.load(tensors)
    for each in (one, other):
        each.embed(features(3, 1), FIRST, stream(1, "noise"))
        each.backward(torch.ones(3, 4))
        assert torch.equal(each.embed_once(features(1), torch.tensor([5]), rng), shown)
    assert torch.equal(one.bottom.weight, other.bottom.weight)
    assert torch.equal(one.scale.log_scale, other.scale.log_scale)
    assert one.ledger.spent() == other.ledger.spent()
    with pytest.raises(ValueError, match="mechanism"):
        party(BUDGET.model_copy(update={"sigma": 0.1})).load(tensors)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.zeros(2, 4), r"shape \(3, 4\) .* got \(2, 4\)"),
        (torch.full((3, 4), torch.nan), "12 that are not"),
    ],
)
def test_a_bad_gradient_is_refused_and_nothing_moves(gradient, message: str) -> None:
    one = party()
    before = one.bottom.weight.detach().clone()
    one.embed(features(), FIRST, stream(0, "noise"))
    with pytest.raises(ValueError, match=message):
        one.backward(gradient)
    assert torch.equal(one.bottom.weight, before)
    one.backward(torch.ones(3, 4))
    assert not torch.equal(one.bottom.weight, before)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (torch.tensor([0, 1]), r"shape \(3,\)"),
        (torch.tensor([0, 1, 6]), "0..5, got 0..6"),
        (torch.tensor([0.0, 1, 2]), "int64"),
    ],
)
@pytest.mark.parametrize("release", [BUDGET, Unprotected()])
def test_unknown_records_are_refused(release, records: torch.Tensor, message: str) -> None:
    for embed in (party(release).embed, party(release).embed_once):
        with pytest.raises(ValueError, match=message):
            embed(features(), records, stream(0, "noise"))


def test_a_network_that_diverged_releases_nothing_and_pays_nothing() -> None:
    one = party()
    nn.init.constant_(one.bottom.weight, torch.nan)
    with pytest.raises(ValueError, match="finite"):
        one.embed(features(), FIRST, stream(0, "noise"))
    assert one.ledger.counts.sum() == 0


def test_baselines_send_what_they_say() -> None:
    raw = party(Unprotected())
    assert torch.equal(raw.embed(features(), FIRST, stream(0, "n")), raw.bottom(features()))
    noisy = party(UnclippedNoise(sigma=0.01))
    z = noisy.embed(100 * features(), FIRST, stream(0, "n"))
    assert (z.norm(dim=1) > 10).all() and noisy.ledger is None
    assert noisy.tensors().keys() >= {"model.bottom.weight", "inference.z"}


def test_settings_build_on_face_views_and_refuse_a_scale_without_a_bound() -> None:
    settings = PassiveSettings(
        backbone=SmallConv(widths=(4, 4, 4, 4), embedding_size=5), release=BUDGET
    )
    built = settings.build(16, 3, stream(0, "party"))
    z = built.embed(torch.zeros(2, 3, 16, 16), torch.tensor([0, 2]), stream(0, "noise"))
    assert z.shape == (2, 5)
    built.start_round(2, 2)
    with pytest.raises(ValueError, match="scale sphere needs a release with a clip"):
        PassiveSettings(release=Unprotected())
    decaying = PassiveSettings(release=BUDGET, optimizer=SGD(final_share=0.1))
    last = decaying.build(16, 3, stream(0, "party"))
    last.start_round(5, 5)
    assert last.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_party_with_attributes_has_a_perceptron_of_the_same_dimension() -> None:
    conv = SmallConv(widths=(4, 4, 4, 4), embedding_size=5)
    settings = PassiveSettings(backbone=conv, release=BUDGET, attribute_hidden=(7,))
    built, again = (settings.build(0, 3, stream(0, "party"), n_attributes=2) for _ in range(2))
    widths = [tuple(p.shape) for p in built.bottom.parameters()]
    assert widths == [(7, 2), (7,), (5, 7), (5,)]
    assert torch.equal(
        built.tensors()["model.bottom.0.weight"], again.tensors()["model.bottom.0.weight"]
    )
    z = built.embed(torch.ones(2, 2), torch.tensor([0, 2]), stream(0, "noise"))
    before = built.tensors()["model.bottom.0.weight"]
    built.backward(torch.ones_like(z))
    assert z.shape == (2, 5)
    assert not torch.equal(built.tensors()["model.bottom.0.weight"], before)
