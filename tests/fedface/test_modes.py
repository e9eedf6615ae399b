import pytest
import torch
from torch import nn

from fedface.modes import evaluating, torch_threads


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training and model[0].training
    assert not model[1].training and not model[1][0].training


def test_modes_return_after_an_error():
    model = nn.Dropout()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training


def test_threads_return_after_an_error():
    before = torch.get_num_threads()
    seen = []
    with pytest.raises(KeyError), torch_threads(before + 1):
        seen.append({}[torch.get_num_threads()])
    assert torch.get_num_threads() == before
    with torch_threads(before + 1):
        seen.append(torch.get_num_threads())
    assert seen == [before + 1] and torch.get_num_threads() == before
