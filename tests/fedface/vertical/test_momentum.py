import pytest
import torch
from torch import nn

from fedface.random import stream
from fedface.training.optimizers import SGD
from fedface.vertical.momentum import momentum, restore_momentum


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 3, generator=stream(number, "x"))).square().sum().backward()
    optimizer.step()


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, other = (SGD().build((m,), 1, 1) for m in (model, twin))
    assert momentum(optimizer) == {}
    step(model, optimizer, 0)
    twin.load_state_dict(model.state_dict())
    saved = momentum(optimizer)
    restore_momentum(other, saved)
    for number in (1, 2):
        step(model, optimizer, number)
        step(twin, other, number)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
    assert not torch.equal(saved["0"], momentum(optimizer)["0"])


@pytest.mark.parametrize("saved", [{"0": torch.zeros(3)}, {"2": torch.zeros(2, 3)}])
def test_momentum_of_another_model_is_refused(saved: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"momentum \d needs a parameter of shape"):
        restore_momentum(SGD().build((nn.Linear(3, 2),), 1, 1), saved)
