import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pytorch_metric_learning.losses import ArcFaceLoss
from torch.testing import assert_close

from fedface.heads import ArcFace
from fedface.heads.arcface import arcface_cosine
from fedface.heads.margin import cosines
from tests.fedface.heads.properties import EVERY, N_IDENTITIES, SIZE, build, random_batch

margins = st.floats(0, math.pi / 2)


def paper_cosine(cosine, margin):
    """psi by the angle itself, one number at a time."""
    theta = math.acos(cosine)
    if theta <= math.pi - margin:
        return math.cos(theta + margin)
    return math.cos(theta) - margin * math.sin(margin)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.0, math.pi / 2])
def test_matches_the_paper(margin):
    cosine = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    expected = cosine.new_tensor([paper_cosine(c, margin) for c in cosine.tolist()])
    assert_close(arcface_cosine(cosine, margin), expected, atol=1e-12, rtol=0)


@given(margins)
def test_falls_as_the_angle_grows(margin):
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    psi = arcface_cosine(theta.cos(), margin)
    assert (psi.diff() < 1e-12).all()


def test_would_rise_without_the_continuation_and_for_margins_beyond_the_range():
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    assert (torch.cos(theta + 0.5).diff() > 0).any()
    assert (arcface_cosine(theta.cos(), 2.5).diff() > 0).any()


@given(margins, st.floats(-1, 1))
def test_never_raises_the_cosine(margin, cosine):
    assert arcface_cosine(torch.tensor(cosine, dtype=torch.float64), margin) <= cosine + 1e-12


def test_documented_jump():
    edge = -math.cos(0.5)
    sides = torch.tensor([edge + 1e-9, edge - 1e-9], dtype=torch.float64)
    above, below = arcface_cosine(sides, 0.5)
    assert above.item() == pytest.approx(-1, abs=1e-6)
    assert below.item() == pytest.approx(-1.117, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [0.0, 1e-7])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_value_exact_and_gradient_finite_at_the_poles(sign, excess, dtype):
    cosine = torch.tensor(sign * (1 + excess), dtype=dtype, requires_grad=True)
    psi = arcface_cosine(cosine, 0.5)
    psi.backward()
    assert psi.item() == pytest.approx(paper_cosine(sign, 0.5), abs=1e-6)
    expected = math.cos(0.5) if sign > 0 else 1.0
    assert cosine.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_head_has_finite_gradients_for_embeddings_on_their_class_centre(sign):
    head = build(ArcFace())
    head.weight.data = torch.cat((torch.eye(SIZE), -torch.eye(SIZE)[:1]))  # five unit vectors
    embeddings = (sign * 2 * head.weight.detach()).requires_grad_()
    labels = torch.arange(N_IDENTITIES)
    at_own = cosines(embeddings, head.weight).diagonal()
    assert torch.equal(at_own, torch.full_like(at_own, sign))
    F.cross_entropy(head(embeddings, labels), labels).backward()
    for gradient in (embeddings.grad, head.weight.grad):
        assert gradient.isfinite().all() and gradient.abs().max() < 1e3


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.5), (16.0, 0.2), (8.0, 1.2), (64.0, 0.0)])
def test_loss_and_gradients_match_pytorch_metric_learning(scale, margin):
    """Same away from the poles; there theirs (by arc cosine) gives NaN and ours does not."""
    head = build(ArcFace(scale=scale, margin=margin)).double()
    embeddings, labels = random_batch(n=200)
    embeddings[:50] = 0.1 * embeddings[:50] - 200 * head.weight.detach()[labels[:50]]
    embeddings = embeddings.double().requires_grad_()
    beyond = cosines(embeddings, head.weight).gather(1, labels[:, None]) < -math.cos(margin)
    assert margin == 0 or 20 < beyond.sum() < 180  # both branches are compared
    theirs = ArcFaceLoss(N_IDENTITIES, SIZE, margin=math.degrees(margin), scale=scale).double()
    theirs.W.data = head.weight.detach().T.clone()
    copy = embeddings.detach().clone().requires_grad_()

    loss = F.cross_entropy(head(embeddings, labels), labels)
    expected = theirs(copy, labels)
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(embeddings.grad, copy.grad)
    assert_close(head.weight.grad, theirs.W.grad.T)


def test_margin_zero_is_the_scaled_cosine_softmax():
    head, (embeddings, labels) = build(ArcFace(margin=0.0)), random_batch()
    assert_close(head(embeddings, labels), 64 * cosines(embeddings, head.weight))


def test_defaults_are_the_papers():
    assert (ArcFace().scale, ArcFace().margin) == (64.0, 0.5)


@pytest.mark.parametrize("prop", EVERY)
def test_property(prop):
    prop(ArcFace(scale=8.0, margin=0.4))


@pytest.mark.parametrize(
    "fields", [{"scale": 0}, {"scale": -1}, {"margin": -0.1}, {"margin": 1.6}, {"easy_margin": 1}]
)
def test_refused_settings(fields):
    with pytest.raises(ValidationError):
        ArcFace(**fields)
