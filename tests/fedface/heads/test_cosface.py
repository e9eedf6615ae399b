import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from pytorch_metric_learning.losses import CosFaceLoss
from torch.testing import assert_close

from fedface.heads import CosFace
from fedface.heads.cosface import cosface_cosine
from fedface.heads.margin import cosines
from tests.fedface.heads.properties import EVERY, N_IDENTITIES, SIZE, build, random_batch


def test_equation_4():
    cosine = torch.linspace(-1, 1, 11)
    expected = torch.tensor([c - 0.35 for c in cosine.tolist()])
    assert_close(cosface_cosine(cosine, 0.35), expected)


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.35), (16.0, 0.2), (64.0, 0.0)])
def test_loss_and_gradients_match_pytorch_metric_learning(scale, margin):
    head = build(CosFace(scale=scale, margin=margin)).double()
    embeddings, labels = random_batch(n=100)
    embeddings = embeddings.double().requires_grad_()
    theirs = CosFaceLoss(N_IDENTITIES, SIZE, margin=margin, scale=scale).double()
    theirs.W.data = head.weight.detach().T.clone()
    copy = embeddings.detach().clone().requires_grad_()

    loss = F.cross_entropy(head(embeddings, labels), labels)
    expected = theirs(copy, labels)
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(embeddings.grad, copy.grad)
    assert_close(head.weight.grad, theirs.W.grad.T)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_finite_on_the_class_centre(sign):
    head = build(CosFace())
    embeddings = (sign * head.weight.detach()).requires_grad_()
    labels = torch.arange(N_IDENTITIES)
    F.cross_entropy(head(embeddings, labels), labels).backward()
    assert embeddings.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_margin_zero_is_the_scaled_cosine_softmax():
    head, (embeddings, labels) = build(CosFace(margin=0.0)), random_batch()
    assert_close(head(embeddings, labels), 64 * cosines(embeddings, head.weight))


def test_defaults_are_the_papers():
    assert (CosFace().scale, CosFace().margin) == (64.0, 0.35)


@pytest.mark.parametrize("prop", EVERY)
def test_property(prop):
    prop(CosFace(scale=8.0, margin=0.4))


@pytest.mark.parametrize("fields", [{"scale": 0}, {"margin": -0.1}, {"margin": 1.1}, {"m": 0.3}])
def test_refused_settings(fields):
    with pytest.raises(ValidationError):
        CosFace(**fields)
