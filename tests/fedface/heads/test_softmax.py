import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from fedface.heads import Softmax
from tests.fedface.heads.properties import EVERY, build, random_batch


def test_logits_are_linear_with_bias_whatever_the_labels():
    head, (embeddings, labels) = build(Softmax()), random_batch()
    assert torch.equal(head.bias, torch.zeros(5))
    head.bias.data = torch.randn(5)
    expected = embeddings @ head.weight.T + head.bias
    assert_close(head(embeddings, labels), expected)
    assert_close(head(embeddings, labels.flip(0)), expected)


def test_longer_embeddings_have_larger_logits():
    head, (embeddings, labels) = build(Softmax()), random_batch()
    assert_close(head(2 * embeddings, labels), 2 * head(embeddings, labels))


@pytest.mark.parametrize("prop", EVERY)
def test_property(prop):
    prop(Softmax())


def test_refused_settings():
    with pytest.raises(ValidationError):
        Softmax(scale=64)
