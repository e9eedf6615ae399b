import pytest
import torch
from torch import nn

from fedface.backbones.initialisation import initialised
from fedface.random import stream


def build(rng):
    return initialised(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 6)), rng)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_same_stream_same_weights_other_stream_other_weights():
    first, again, other = (weights(build(stream(0, name))) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_next_module_of_one_stream_differs():
    rng = stream(0, "a")
    assert not torch.equal(weights(build(rng)), weights(build(rng)))


def test_torch_generator_neither_matters_nor_moves():
    torch.rand(3)
    before = torch.get_rng_state()
    first = weights(build(stream(0, "a")))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(weights(build(stream(0, "a"))), first)


def test_torch_generator_is_put_back_when_construction_fails():
    before = torch.get_rng_state()
    with pytest.raises(TypeError):
        initialised(lambda: nn.Linear(2, torch.rand(3)), stream(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_rng_advances_by_one_draw_whatever_the_size():
    small, large = stream(0, "a"), stream(0, "a")
    initialised(lambda: nn.Linear(1, 1), small)
    initialised(lambda: nn.Linear(50, 50), large)
    assert torch.equal(torch.rand(2, generator=small), torch.rand(2, generator=large))


def test_default_device_does_not_matter():
    with torch.device("meta"):
        module = build(stream(0, "a"))
    assert torch.equal(weights(module), weights(build(stream(0, "a"))))
