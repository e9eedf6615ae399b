from torch import nn

from fedface.aggregation.fragments import cut, fragment_layers, fragments
from fedface.parameters import Layout
from tests.fedface.aggregation.properties import LAYOUT, make_cohort, random_updates


def test_fragments_are_filters_and_rows_with_their_bias():
    updates = random_updates(3)
    result = fragments(make_cohort(updates))
    assert list(result) == ["conv1", "conv2", "fc"]
    for name, shape in (("conv1", (3, 16, 28)), ("conv2", (3, 32, 144)), ("fc", (3, 64, 129))):
        assert result[name].shape == shape
    for client in range(3):
        named = LAYOUT.unflatten(updates[client])
        for layer, rows in result.items():
            for f, fragment in enumerate(rows[client]):
                expected = named[f"{layer}.weight"][f].reshape(-1).tolist()
                if f"{layer}.bias" in named:
                    expected.append(float(named[f"{layer}.bias"][f]))
                assert fragment.tolist() == expected


def test_a_layer_without_bias_is_a_view():
    updates = random_updates(3)
    layers = {layer.name: layer for layer in fragment_layers(LAYOUT)}
    assert cut(updates, layers["conv2"])._base is updates
    assert (layers["fc"].n_fragments, layers["fc"].fragment_dim) == (64, 129)


def test_real_modules():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU(4), nn.MultiheadAttention(8, 2)
    )
    shapes = {
        layer.name: (layer.n_fragments, layer.fragment_dim)
        for layer in fragment_layers(Layout.of(net))
    }
    assert shapes == {"0": (4, 27), "3.in_proj_weight": (24, 9), "3.out_proj": (8, 9)}
    alone = fragment_layers(Layout.of(nn.Linear(5, 2)))
    assert [(layer.name, layer.fragment_dim) for layer in alone] == [("weight", 6)]


def test_one_dimensional_tokens_and_empty_parameters_are_no_fragments():
    layout = Layout.from_shapes(
        {"norm.weight": (4,), "norm.bias": (4,), "token": (1, 1, 8), "none.weight": (0, 3)}
    )
    assert fragment_layers(layout) == ()
