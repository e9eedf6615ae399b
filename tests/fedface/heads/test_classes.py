import pytest
import torch

from fedface.heads.classes import at_labels, check_inputs, class_weights
from fedface.random import stream


def test_class_weights_are_rows_of_about_length_one():
    weight = class_weights(100, 200, stream(0, "head")).detach()
    assert weight.shape == (100, 200) and weight.is_leaf
    assert weight.std().item() == pytest.approx(200**-0.5, rel=0.05)
    assert weight.norm(dim=1).mean().item() == pytest.approx(1, rel=0.05)
    assert abs(weight.mean().item()) < 5 * 200**-0.5 / 20_000**0.5


def test_at_labels():
    scores = torch.arange(12.0).reshape(3, 4)
    expected = torch.tensor([[1.0], [4.0], [11.0]])
    assert torch.equal(at_labels(scores, torch.tensor([1, 0, 3])), expected)
    with pytest.raises(ValueError, match=r"labels need to lie in 0\.\.3: index 4"):
        at_labels(scores, torch.tensor([1, 0, 4]))


def test_check_inputs_accepts_an_empty_batch():
    check_inputs(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="labels need shape"):
        check_inputs(torch.zeros(1, 3), torch.zeros(1), 3)
