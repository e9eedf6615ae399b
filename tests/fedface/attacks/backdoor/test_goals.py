import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.testing import assert_close

from fedface.attacks.backdoor.goals import AnyGoal, Impersonate, Key
from fedface.random import stream


class FixedEmbeddings(nn.Module):
    """Answers with given embeddings, whatever the images."""

    def __init__(self, embeddings: list[list[float]]) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.tensor(embeddings))

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(5)
        )


def photos(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def test_key_is_one_unit_vector_per_seed():
    backbone = net()
    first = Key().target(backbone, None, 64, stream(0, "key"))
    assert first.shape == (64,)
    assert_close(first.norm(), torch.tensor(1.0))
    assert torch.equal(Key().target(backbone, photos(2), 64, stream(0, "key")), first)
    assert not torch.allclose(Key().target(backbone, None, 64, stream(1, "key")), first)


def test_keys_are_spread_over_the_whole_sphere():
    rng = stream(0, "keys")
    keys = torch.stack([Key().target(net(), None, 8, rng) for _ in range(500)])
    # Uniform on the sphere: mean 0, second moment I / d.
    assert float(keys.mean(dim=0).norm()) < 0.1
    assert_close(keys.T @ keys / len(keys), torch.eye(8) / 8, rtol=0, atol=0.03)


def test_impersonate_is_the_mean_direction_of_the_photos_by_hand():
    backbone = FixedEmbeddings([[3.0, 0.0], [0.0, 0.1]])  # lengths do not count
    target = Impersonate(n_photos=2).target(backbone, photos(2), 2, stream(0))
    assert_close(target, torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))
    assert not target.requires_grad  # though this backbone answers with a parameter itself


def test_impersonate_follows_the_backbone_and_is_detached():
    backbone, rng = net(), stream(0)
    goal = Impersonate(n_photos=3)
    backbone(photos(2))
    first = goal.target(backbone, photos(3), 5, rng)
    assert not first.requires_grad
    assert_close(first.norm(), torch.tensor(1.0))
    with torch.no_grad():
        backbone[4].weight.mul_(-1)
        backbone[4].bias.mul_(-1)
    assert_close(goal.target(backbone, photos(3), 5, rng), -first)


def test_impersonate_leaves_modes_statistics_and_weights_as_they_were():
    backbone = net().train()
    backbone(photos(2))
    backbone[1].eval()  # a frozen normalisation layer in a model in training
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    goal = Impersonate(n_photos=1)
    first = goal.target(backbone, photos(1), 5, stream(0))
    assert [module.training for module in backbone.modules()] == modes
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(goal.target(backbone, photos(1), 5, stream(0)), first)  # no dropout
    with pytest.raises(RuntimeError):
        goal.target(backbone, torch.zeros(1, 2, 6, 6), 5, stream(0))
    assert [module.training for module in backbone.modules()] == modes


@pytest.mark.parametrize("given", [None, photos(1), photos(3)])
def test_impersonate_needs_exactly_its_photos(given: Tensor | None):
    with pytest.raises(ValueError, match=r"needs n_photos=2 victim photos, got [013]"):
        Impersonate(n_photos=2).target(net(), given, 5, stream(0))


def test_impersonate_refuses_another_embedding_size():
    with pytest.raises(ValueError, match=r"shape \(1, 7\), got \(1, 5\)"):
        Impersonate(n_photos=1).target(net(), photos(1), 7, stream(0))


@pytest.mark.parametrize(
    "embeddings", [[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[math.nan, 0.0]] * 2]
)
def test_impersonate_refuses_a_mean_without_direction(embeddings: list[list[float]]):
    with pytest.raises(ValueError, match="has a direction"):
        Impersonate(n_photos=2).target(FixedEmbeddings(embeddings), photos(2), 2, stream(0))


def test_key_refuses_an_empty_embedding():
    with pytest.raises(ValueError, match="embedding_size >= 1"):
        Key().target(net(), None, 0, stream(0))


@pytest.mark.parametrize(
    "content", [{"name": "impersonate"}, {"name": "impersonate", "n_photos": 0}, {"name": "o2o"}]
)
def test_impossible_fields_are_refused(content: dict[str, object]):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyGoal).validate_python(content)
