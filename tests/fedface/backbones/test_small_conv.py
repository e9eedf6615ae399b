import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from fedface.backbones import SmallConv
from tests.fedface.backbones.properties import (
    EVERY,
    assert_embeds_each_image_alone,
    build,
    random_images,
)


@pytest.mark.parametrize(("image_size", "n_parameters"), [(32, 306_848), (64, 503_456)])
def test_parameter_count(image_size, n_parameters):
    convolutions = sum(9 * a * b for a, b in ((3, 32), (32, 64), (64, 128), (128, 128)))
    norms = 2 * (32 + 64 + 128 + 128)
    linear = 128 * (image_size // 16) ** 2 * 128 + 128
    assert convolutions + norms + linear == n_parameters
    assert sum(p.numel() for p in build(SmallConv(), image_size).parameters()) == n_parameters


@pytest.mark.parametrize("image_size", [16, 32, 64, 112])
def test_embeds_images_of_each_size(image_size):
    embeddings = build(SmallConv(), image_size)(random_images(2, image_size))
    assert embeddings.shape == (2, 128)


def test_computes_four_convolutions_then_one_linear_layer():
    network, images = build(SmallConv()), random_images()
    x = images
    for convolution, norm, _ in network.layers:
        x = F.relu(norm(F.conv2d(x, convolution.weight, stride=2, padding=1)))
    expected = F.linear(x.flatten(1), network.fc.weight, network.fc.bias)
    torch.testing.assert_close(network(images), expected)


def test_learns_to_tell_images_apart():
    network, images = build(SmallConv(widths=(8, 16, 32, 32))), random_images(n=8)
    labels = torch.arange(8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(network(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 1 and losses[-1] < 0.1


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("prop", EVERY)
def test_property(prop, norm):
    prop(SmallConv(norm=norm))


def test_group_norm_embeds_each_image_alone():
    assert_embeds_each_image_alone(SmallConv())


@pytest.mark.parametrize(
    "fields",
    [{"widths": (8, 8, 8)}, {"widths": (8, 8, 8, 0)}, {"embedding_size": 0}, {"norm": None}],
)
def test_refused_settings(fields):
    with pytest.raises(ValidationError):
        SmallConv(**fields)
