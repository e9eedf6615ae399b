import torch
from torch import nn

from fedface.random import stream
from fedface.vertical.joint import JointModel, perceptron
from fedface.vertical.missing import Substitutes
from fedface.vertical.post import NoPost


def test_a_perceptron_has_relu_between_its_layers() -> None:
    layers = perceptron((3, 5, 2))
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in perceptron((3, 2))] == ["Linear"]
    assert layers(torch.zeros(4, 3)).shape == (4, 2)


def test_parties_are_concatenated_in_order_behind_the_own_features() -> None:
    memories = [Substitutes("mean", 2, 4), Substitutes("mean", 1, 4)]
    posts = [NoPost().build(2, None, 0.0), NoPost().build(1, None, 0.0)]
    model = JointModel(nn.Flatten(), posts, memories, [], nn.Identity(), nn.Identity())
    own, records = torch.ones(3, 2), torch.tensor([0, 1, 2])
    z = [torch.full((3, 2), 2.0), torch.full((3, 1), 3.0)]
    assert model(own, z, records)[0].tolist() == [1, 1, 2, 2, 3]
    memories[0].remember(torch.full((1, 2), 7.0), torch.tensor([0]))
    assert model(own, [None, z[1]], records)[2].tolist() == [1, 1, 7, 7, 3]
    assert model.distribution_loss(z, records).item() == 0


def test_the_distribution_loss_is_the_mean_over_the_parties_present() -> None:
    class Sum(nn.Module):
        def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return z.sum() + labels.sum()

    memories = [Substitutes("zeros", 2, 4) for _ in range(3)]
    posts = [nn.Identity()] * 3
    model = JointModel(None, posts, memories, [Sum(), Sum(), Sum()], nn.Identity(), nn.Identity())
    z = torch.randn(2, 2, generator=stream(0, "z"))
    labels = torch.tensor([1, 2])
    wanted = (z.sum() + 3 + 2 * z.sum() + 3) / 2
    assert torch.allclose(model.distribution_loss([z, None, 2 * z], labels), wanted)
    assert model.distribution_loss([None] * 3, labels).item() == 0
