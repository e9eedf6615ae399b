import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.testing import assert_close

from fedface.backbones import IResNet
from fedface.backbones.iresnet import IResNetNetwork
from tests.fedface.backbones.properties import (
    EVERY,
    assert_embeds_each_image_alone,
    build,
    random_images,
)

STAGES = {  # recognition/arcface_torch/backbones/iresnet.py, the last lines
    "iresnet18": [2, 2, 2, 2],
    "iresnet34": [3, 4, 6, 3],
    "iresnet50": [3, 4, 14, 3],
    "iresnet100": [3, 13, 30, 3],
}


def published_norm(name, n):
    shapes = {f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def published_shapes(name, image_size=112, embedding_size=512):
    """InsightFace's state dict, in its order, written down from its published structure."""
    shapes = {"conv1.weight": (64, 3, 3, 3)} | published_norm("bn1", 64) | {"prelu.weight": (64,)}
    n_in = 64
    for stage, n_out in enumerate((64, 128, 256, 512), start=1):
        for block in range(STAGES[name][stage - 1]):
            prefix = f"layer{stage}.{block}."
            shapes |= published_norm(prefix + "bn1", n_in)
            shapes |= {prefix + "conv1.weight": (n_out, n_in, 3, 3)}
            shapes |= published_norm(prefix + "bn2", n_out)
            shapes |= {prefix + "prelu.weight": (n_out,)}
            shapes |= {prefix + "conv2.weight": (n_out, n_out, 3, 3)}
            shapes |= published_norm(prefix + "bn3", n_out)
            if block == 0:
                shapes |= {prefix + "downsample.0.weight": (n_out, n_in, 1, 1)}
                shapes |= published_norm(prefix + "downsample.1", n_out)
            n_in = n_out
    shapes |= published_norm("bn2", 512)
    shapes |= {"fc.weight": (embedding_size, 512 * (image_size // 16) ** 2)}
    shapes |= {"fc.bias": (embedding_size,)}
    return shapes | published_norm("features", embedding_size)


def norm(state, name, x):
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])


def published_forward(state, x):
    """The published computation in use (BatchNorm with its statistics), from a state dict."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    x = F.prelu(norm(state, "bn1", x), state["prelu.weight"])
    blocks = dict.fromkeys(n.rsplit(".bn1", 1)[0] for n in state if n.endswith("bn1.weight"))
    for block in [name for name in blocks if name.startswith("layer")]:
        stride = 2 if f"{block}.downsample.0.weight" in state else 1
        out = F.conv2d(norm(state, f"{block}.bn1", x), state[f"{block}.conv1.weight"], padding=1)
        out = F.prelu(norm(state, f"{block}.bn2", out), state[f"{block}.prelu.weight"])
        out = F.conv2d(out, state[f"{block}.conv2.weight"], stride=stride, padding=1)
        out = norm(state, f"{block}.bn3", out)
        if stride == 2:
            x = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2)
            x = norm(state, f"{block}.downsample.1", x)
        x = x + out
    x = norm(state, "bn2", x).flatten(1)
    return norm(state, "features", F.linear(x, state["fc.weight"], state["fc.bias"]))


def on_meta(**fields):
    image_size = fields.pop("image_size", 112)
    with torch.device("meta"):
        return IResNetNetwork(IResNet(**fields), image_size)


@pytest.mark.parametrize("name", STAGES)
def test_state_dict_is_the_published_one(name):
    state = on_meta(name=name, norm="batch").state_dict()
    assert [(n, tuple(t.shape)) for n, t in state.items()] == list(published_shapes(name).items())


@pytest.mark.parametrize(("image_size", "embedding_size"), [(64, 512), (112, 128), (32, 64)])
def test_only_the_last_layers_follow_image_and_embedding_size(image_size, embedding_size):
    fields = {"name": "iresnet18", "norm": "batch", "embedding_size": embedding_size}
    state = on_meta(image_size=image_size, **fields).state_dict()
    expected = published_shapes("iresnet18", image_size, embedding_size)
    assert {n: tuple(t.shape) for n, t in state.items()} == expected


@pytest.mark.parametrize(
    ("name", "n_parameters", "open_model_zoo"),
    [
        ("iresnet18", 24_025_600, None),
        ("iresnet34", 34_139_328, 34.129e6),
        ("iresnet50", 43_590_848, None),
        ("iresnet100", 65_156_160, 65.132e6),
    ],
)
def test_parameter_counts(name, n_parameters, open_model_zoo):
    """The counts of the published structure; OpenVINO's zoo lists the MXNet originals."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    shapes = [s for n, s in published_shapes(name).items() if not n.endswith(statistics)]
    assert sum(torch.Size(shape).numel() for shape in shapes) == n_parameters
    network = on_meta(name=name, norm="batch")
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    if open_model_zoo is not None:
        assert n_parameters == pytest.approx(open_model_zoo, rel=1e-3)


def test_group_norm_has_the_same_weights_but_no_statistics_and_no_features_layer():
    group = on_meta(name="iresnet18").state_dict()
    expected = {
        name: shape
        for name, shape in published_shapes("iresnet18").items()
        if name.endswith(("weight", "bias")) and not name.startswith("features")
    }
    assert {n: tuple(t.shape) for n, t in group.items()} == expected


def test_computes_what_the_published_structure_computes():
    network = build(IResNet(name="iresnet18", norm="batch", embedding_size=32)).eval()
    rng = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(value.shape, generator=rng) + 0.5
        if name.rsplit(".", 1)[1] in ("weight", "running_var") and value.ndim == 1
        else torch.randn(value.shape, generator=rng) / 10
        if value.is_floating_point()
        else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    images = random_images()
    with torch.no_grad():
        assert_close(network(images), published_forward(state, images), rtol=1e-3, atol=1e-3)


def test_initial_weights_are_the_published_ones():
    network = build(IResNet(name="iresnet18", norm="batch"))
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.1), name
        elif "prelu" in name:
            assert (parameter == 0.25).all(), name
        elif name.endswith("weight") and parameter.ndim == 1:
            assert (parameter == 1).all(), name
    fixed = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert fixed == {"features.weight"}


@pytest.mark.parametrize("norm_name", ["group", "batch"])
@pytest.mark.parametrize("prop", EVERY)
def test_property(prop, norm_name):
    prop(IResNet(name="iresnet18", norm=norm_name, embedding_size=32))


def test_group_norm_embeds_each_image_alone():
    assert_embeds_each_image_alone(IResNet(name="iresnet18", embedding_size=32))


def test_batch_norm_mixes_images_and_cannot_train_on_one():
    network, images = build(IResNet(name="iresnet18", norm="batch")), random_images()
    assert (network(images)[:2] - network(images[:2])).abs().max() > 0.1
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(images[:1])


def test_dropout_acts_in_training_only():
    images = random_images(n=2)
    plain = build(IResNet(name="iresnet18", embedding_size=32))
    dropping = build(IResNet(name="iresnet18", embedding_size=32, dropout=0.5))
    assert_close(dropping.eval()(images), plain.eval()(images))
    assert (dropping.train()(images) - plain.train()(images)).abs().max() > 0.1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "iresnet20"},
        {"name": "iresnet18", "dropout": 1.0},
        {"name": "iresnet18", "dropout": -0.1},
        {"name": "iresnet18", "embedding_size": 0},
        {"name": "iresnet18", "norm": "layer"},
        {"name": "iresnet18", "width": 64},
    ],
)
def test_refused_settings(fields):
    with pytest.raises(ValidationError):
        IResNet(**fields)
