import copy

import pytest
import torch
from torch.nn import functional

from fedface.backbones import SmallConv
from fedface.heads import ArcFace, Softmax
from fedface.random import stream
from fedface.training.optimizers import SGD
from fedface.vertical.active import ActiveParty, ActiveSettings
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import Centre, NoDistribution, SupervisedContrastive

CHANNELS = (Channel("a", 4, 1.0, 0.5), Channel("b", 3, None, 0.0))
LABELS, RECORDS = torch.tensor([0, 1, 0, 2]), torch.tensor([5, 6, 7, 8])


def active(**settings) -> ActiveParty:
    base = {"hidden": (8,), "embedding_size": 6, "optimizer": SGD(learning_rate=0.1)}
    return ActiveSettings(**{**base, **settings}).build(CHANNELS, 3, 10, 16, stream(0, "active"))


def received(seed: int = 0) -> list[torch.Tensor]:
    rng = stream(seed, "z")
    return [0.5 * torch.randn(4, c.dim, generator=rng) for c in CHANNELS]


def test_a_step_returns_the_gradients_of_task_plus_weighted_distribution() -> None:
    one = active(distribution=SupervisedContrastive(temperature=0.5), distribution_weight=0.7)
    twin = copy.deepcopy(one.model)
    step = one.step(None, received(), LABELS, RECORDS)
    z = [row.requires_grad_() for row in received()]
    rescaled = [z[0] / (1 / 4 + 0.25) ** 0.5, z[1]]
    task = functional.cross_entropy(twin.head(twin.top(torch.cat(rescaled, 1)), LABELS), LABELS)
    shaping = sum(d(row, LABELS) for d, row in zip(twin.distributions, z, strict=True)) / 2
    (task + 0.7 * shaping).backward()
    assert step.task_loss == pytest.approx(task.item())
    assert step.distribution_loss == pytest.approx(shaping.item())
    assert step.loss == pytest.approx(task.item() + 0.7 * shaping.item())
    for found, row in zip(step.gradients, z, strict=True):
        assert torch.allclose(found, row.grad, atol=1e-6)
    weight, start = one.model.top[0].weight, twin.top[0].weight
    decayed = start - 0.1 * (start.grad + 5e-4 * start)
    assert torch.allclose(weight, decayed, atol=1e-6)


def test_what_is_received_is_not_changed() -> None:
    z = received()
    before = [row.clone() for row in z]
    active().step(None, z, LABELS, RECORDS)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(z, before, strict=True))


@pytest.mark.parametrize("policy", ["zeros", "mean", "last"])
def test_a_party_that_dropped_out_gets_no_gradient_and_the_step_goes_on(policy: str) -> None:
    one = active(missing=policy)
    one.step(None, received(), LABELS, RECORDS)
    step = one.step(None, [None, received()[1]], LABELS, RECORDS)
    assert step.gradients[0] is None and step.gradients[1].shape == (4, 3)
    stand_in = one.model.substitutes[0](RECORDS)
    wanted = {"zeros": torch.zeros(4, 4), "last": received()[0]}.get(policy)
    mean = received()[0].mean(0).expand(4, 4)
    assert torch.allclose(stand_in, mean if wanted is None else wanted, atol=1e-6)
    nobody = one.step(None, [None, None], LABELS, RECORDS)
    assert nobody.gradients == (None, None) and nobody.distribution_loss == 0
    filled = one.embeddings(None, [stand_in, received()[1]], RECORDS)
    assert one.embeddings(None, [None, received()[1]], RECORDS) == pytest.approx(filled, abs=1e-6)


def test_returned_gradients_are_clipped_row_by_row() -> None:
    free = active().step(None, received(), LABELS, RECORDS).gradients
    limit = float(torch.cat([g.norm(dim=1) for g in free]).median())
    bound = active(max_gradient_norm=limit).step(None, received(), LABELS, RECORDS).gradients
    for loose, tight in zip(free, bound, strict=True):
        factor = (limit / loose.norm(dim=1, keepdim=True)).clamp(max=1)
        assert torch.allclose(tight, loose * factor, rtol=1e-5)
        assert (tight.norm(dim=1) <= limit).all()


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([torch.full((4, 4), torch.nan), torch.zeros(4, 3)], "party a .* finite"),
        ([torch.zeros(4, 4), torch.zeros(4, 2)], r"party b .* shape \(4, 3\), got \(4, 2\)"),
        ([torch.full((4, 4), 9.0), torch.zeros(4, 3)], "party a .* clipped at 1"),
        ([torch.zeros(4, 4)], "one entry per passive party, 2, got 1"),
    ],
)
def test_a_bad_message_is_refused_by_name_and_nothing_moves(z, message: str) -> None:
    one = active()
    before = one.tensors()
    with pytest.raises(ValueError, match=message):
        one.step(None, z, LABELS, RECORDS)
    assert all(torch.equal(value, before[name]) for name, value in one.tensors().items())


def test_own_views_are_used_and_asked_for() -> None:
    conv = SmallConv(widths=(4, 4, 4, 4), embedding_size=5)
    one = active(backbone=conv, head=ArcFace())
    own = torch.randn(4, 3, 16, 16, generator=stream(0, "own"))
    step = one.step(own, received(), LABELS, RECORDS)
    assert step.loss > 0
    joint = one.embeddings(own, received(), RECORDS)
    assert joint.shape == (4, 6) and joint.dtype.name == "float32"
    assert (joint**2).sum(1) == pytest.approx(1, abs=1e-5)
    assert abs(joint - one.embeddings(-own, received(), RECORDS)).max() > 1e-4
    with pytest.raises(ValueError, match="own views exactly when it has a backbone, got own=none"):
        one.step(None, received(), LABELS, RECORDS)
    with pytest.raises(ValueError, match="got own=some"):
        active().predictions(own, received(), RECORDS)
    alone = ActiveSettings(backbone=conv).build((), 3, 10, 16, stream(0, "alone"))
    assert alone.step(own, [], LABELS, RECORDS).gradients == ()
    with pytest.raises(ValueError, match="a passive party or a backbone, got neither"):
        ActiveSettings().build((), 3, 10, 16, stream(0, "alone"))


def test_predictions_are_the_largest_logit_and_change_nothing() -> None:
    one = active()
    before = one.tensors()
    found = one.predictions(None, received(), RECORDS)
    z = received()
    joint = one.model.top(torch.cat([z[0] / 0.5**0.5, z[1]], 1))
    assert torch.equal(found, one.model.head(joint, LABELS).argmax(1))
    assert all(torch.equal(value, before[name]) for name, value in one.tensors().items())
    assert one.model.training


def test_a_resumed_active_party_does_what_it_would_have_done() -> None:
    one = active(missing="last", distribution=Centre())
    one.step(None, received(), LABELS, RECORDS)
    other = active(missing="last", distribution=Centre())
    other.load(one.tensors())
    for each in (one, other):
        each.start_round(2, 4)
    z = [None, received(1)[1]]
    first, second = (each.step(None, z, LABELS, RECORDS) for each in (one, other))
    assert first.loss == second.loss
    tensors = other.tensors()
    assert all(torch.equal(value, tensors[name]) for name, value in one.tensors().items())
    assert any(name.endswith("centres") for name in tensors)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    one = active(head=Softmax(), distribution=NoDistribution())
    with torch.no_grad():
        one.model.top[0].weight.fill_(1e38)
    with pytest.raises(ValueError, match=r"finite loss, .*learning_rate"):
        one.step(None, received(), LABELS, RECORDS)


def test_the_same_stream_gives_the_same_party() -> None:
    first, second = active().tensors(), active().tensors()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
