import pytest
import torch
from pydantic import ValidationError

from fedface.backbones import MobileFaceNet
from tests.fedface.backbones.properties import (
    EVERY,
    assert_embeds_each_image_alone,
    build,
    random_images,
)

# Table 1 of the paper for 112 x 112 pixels: each line's *output* (side, channels), with the
# repeats of a bottleneck line written out, and t, its expansion.
TABLE_1 = (
    [("conv3x3", 56, 64, None), ("depthwise conv3x3", 56, 64, None)]
    + [("bottleneck", 28, 64, 2)] * 5
    + [("bottleneck", 14, 128, 4)]
    + [("bottleneck", 14, 128, 2)] * 6
    + [("bottleneck", 7, 128, 4)]
    + [("bottleneck", 7, 128, 2)] * 2
    + [("conv1x1", 7, 512, None), ("linear GDConv7x7", 1, 512, None)]
)


def stages(network):
    return [
        network.conv1,
        network.depthwise1,
        *network.bottlenecks,
        network.conv2,
        network.gdconv,
    ]


def weights_of_table_1(image_size=112):
    """Convolution and linear weights, in loops over the table."""
    total, n_in = 0, 3
    for kind, _, n_out, expansion in TABLE_1:
        if kind == "bottleneck":
            inner = n_in * expansion
            total += n_in * inner + 9 * inner + inner * n_out
        elif kind == "depthwise conv3x3":
            total += 9 * n_out
        elif kind == "linear GDConv7x7":
            total += (image_size // 16) ** 2 * n_out
        else:
            total += n_in * n_out * (9 if kind == "conv3x3" else 1)
        n_in = n_out
    return total + 512 * 128


def test_feature_maps_are_those_of_table_1():
    network, outputs = build(MobileFaceNet(), 112), []
    for stage in stages(network):
        stage.register_forward_hook(lambda *args: outputs.append(tuple(args[2].shape)))
    embeddings = network(random_images(n=1, image_size=112))
    assert outputs == [(1, channels, side, side) for _, side, channels, _ in TABLE_1]
    assert embeddings.shape == (1, 128)


def test_parameter_count_is_the_papers():
    network = build(MobileFaceNet(norm="batch"), 112)
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert weights == weights_of_table_1()
    assert 0.97e6 < sum(p.numel() for p in network.parameters()) < 1.01e6  # paper: 0.99 million


def test_residual_where_stride_is_one_and_shapes_agree():
    residual = [block.is_residual for block in build(MobileFaceNet()).bottlenecks]
    assert residual == [False, *[True] * 4, False, *[True] * 6, False, True, True]


def test_bottleneck_adds_its_input_to_a_linear_projection():
    block = build(MobileFaceNet()).bottlenecks[1]
    x = torch.randn(2, 64, 8, 8)
    inner = block.depthwise(block.expand(x))
    torch.testing.assert_close(block(x), x + block.project(inner))
    assert [type(layer).__name__ for layer in block.project] == ["Conv2d", "GroupNorm"]
    assert [type(layer).__name__ for layer in block.expand] == ["Conv2d", "GroupNorm", "PReLU"]


def test_global_depthwise_convolution_is_as_large_as_the_map_and_linear():
    for image_size, side in ((32, 2), (64, 4), (112, 7)):
        gdconv = build(MobileFaceNet(), image_size).gdconv
        assert gdconv[0].kernel_size == (side, side) and gdconv[0].groups == 512
        assert len(gdconv) == 2


def test_last_layer_has_a_bias_only_where_no_batch_norm_supplies_one():
    assert build(MobileFaceNet()).fc.bias is not None
    assert build(MobileFaceNet(norm="batch")).fc.bias is None


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("prop", EVERY)
def test_property(prop, norm):
    prop(MobileFaceNet(norm=norm))


def test_group_norm_embeds_each_image_alone():
    assert_embeds_each_image_alone(MobileFaceNet())


@pytest.mark.parametrize("fields", [{"embedding_size": 0}, {"norm": "layer"}, {"dropout": 0.5}])
def test_refused_settings(fields):
    with pytest.raises(ValidationError):
        MobileFaceNet(**fields)
