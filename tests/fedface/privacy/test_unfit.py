import pytest
import torch
from torch import nn

from fedface.privacy.unfit import refuse_unfit


class Counting(nn.Linear):
    """A layer that remembers, outside its parameters."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("seen", torch.zeros(1))


class Mixed(nn.Module):
    """Parameters beside a child that has some, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)


def test_group_norm_and_layers_without_memory_are_fit() -> None:
    refuse_unfit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.PReLU()))


def test_batch_norm_is_named_a_few_layers_at_most() -> None:
    with pytest.raises(ValueError, match=r"a head without batch .* found 1 such layer\(s\): 1 \("):
        refuse_unfit(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head")
    many = nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(7)))
    with pytest.raises(ValueError, match=r"found 7 such layer\(s\): 0, 1, 2, 3, 4, \.\.\. \("):
        refuse_unfit(many)


def test_other_memory_and_mixed_modules_are_named() -> None:
    with pytest.raises(ValueError, match=r"a backbone without buffers.*found 0\.seen"):
        refuse_unfit(nn.Sequential(Counting()))
    with pytest.raises(ValueError, match="modules without children, found 0"):
        refuse_unfit(nn.Sequential(Mixed()))
    with pytest.raises(ValueError, match="modules without children, found Mixed"):
        refuse_unfit(Mixed())
