import pytest
import torch
from torch import nn

from fedface.backbones.normalization import channel_norm, embedding_norm, n_groups


@pytest.mark.parametrize(
    ("n_channels", "expected"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (7, 1), (24, 12), (32, 16), (64, 32), (128, 32), (512, 32)],
)
def test_n_groups(n_channels, expected):
    assert n_groups(n_channels) == expected


@pytest.mark.parametrize("n_channels", range(2, 200))
def test_groups_are_equal_as_many_as_allowed_and_of_two_channels_or_more(n_channels):
    allowed = [g for g in range(1, 33) if n_channels % g == 0 and n_channels // g >= 2]
    assert n_groups(n_channels) == allowed[-1]


def test_group_norm_is_the_definition_and_treats_images_alone():
    norm = channel_norm("group", 6)  # three groups of two channels
    assert n_groups(6) == 3
    images = 5 * torch.randn(4, 6, 3, 3) + 2
    expected = torch.empty_like(images)
    for i in range(4):
        for group in range(3):
            channels = slice(2 * group, 2 * group + 2)
            values = images[i, channels]
            variance = ((values - values.mean()) ** 2).mean()
            expected[i, channels] = (values - values.mean()) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(norm(images), expected)
    assert not list(norm.buffers())


def test_batch_norm_is_per_channel():
    norm = channel_norm("batch", 6)
    images = 5 * torch.randn(4, 6, 3, 3) + 2
    centred = images - images.mean(dim=(0, 2, 3), keepdim=True)
    deviation = (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(images), centred / deviation)


def test_embedding_norm_for_batch_has_a_fixed_scale_and_a_free_shift():
    layer = embedding_norm("batch", 5)
    assert isinstance(layer, nn.BatchNorm1d)
    assert not layer.weight.requires_grad and torch.equal(layer.weight, torch.ones(5))
    assert layer.bias.requires_grad


def test_embedding_norm_for_group_keeps_the_length():
    embeddings = torch.randn(3, 5)
    layer = embedding_norm("group", 5)
    assert torch.equal(layer(embeddings), embeddings)
    assert not list(layer.parameters())
