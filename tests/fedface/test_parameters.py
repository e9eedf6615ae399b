from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedface import parameters
from fedface.parameters import Layout
from fedface.random import stream

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=6),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    max_size=5,
)


def network() -> nn.Sequential:
    """A convolution, a frozen one, batch normalisation (with buffers) and a linear layer."""
    net = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 5)
    )
    for parameter in net[1].parameters():
        parameter.requires_grad_(False)
    return net


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    rng = stream(0, "values")
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


@settings(max_examples=40)
@given(SHAPES)
def test_flatten_and_unflatten_are_inverse(shapes):
    layout = Layout.from_shapes(shapes)
    tensors = random_tensors(shapes)
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.dim,)
    assert layout.dim == sum(t.numel() for t in tensors.values())
    back = layout.unflatten(vector)
    assert list(back) == list(shapes)
    assert all(torch.equal(back[name], tensors[name]) for name in shapes)


@settings(max_examples=40)
@given(SHAPES)
def test_slots_tile_the_vector_in_order(shapes):
    slots = Layout.from_shapes(shapes).slots
    assert [slot.start for slot in slots] == [0, *(slot.stop for slot in slots)][: len(slots)]


def test_the_order_of_a_mapping_does_not_matter_its_shapes_do():
    layout = Layout.from_shapes({"a": (2, 3), "b": (2,)})
    tensors = random_tensors({"b": (2,), "a": (2, 3), "unused": (9,)})
    assert torch.equal(layout.flatten(tensors)[:6].reshape(2, 3), tensors["a"])
    with pytest.raises(ValueError, match=r"parameter a needs shape \(2, 3\), got \(3, 2\)"):
        layout.flatten({**tensors, "a": tensors["a"].T})
    with pytest.raises(KeyError, match="b"):
        layout.flatten({"a": tensors["a"]})


def test_a_transposed_view_is_flattened_by_index_not_by_memory():
    layout = Layout.from_shapes({"a": (2, 3)})
    stored = torch.arange(6.0).reshape(3, 2)
    assert layout.flatten({"a": stored.T}).tolist() == [0, 2, 4, 1, 3, 5]


def test_a_vector_of_another_length_is_refused():
    layout = Layout.from_shapes({"a": (2, 3)})
    for vector in (torch.zeros(7), torch.zeros(1, 6), torch.zeros(())):
        with pytest.raises(ValueError, match=r"vector needs shape \(6,\)"):
            layout.unflatten(vector)


def test_the_vector_is_a_float32_copy_and_the_pieces_are_views():
    layout = Layout.from_shapes({"a": (2,)})
    source = torch.ones(2, dtype=torch.float64, requires_grad=True)
    vector = layout.flatten({"a": source})
    assert vector.dtype == torch.float32 and not vector.requires_grad
    vector += 1
    assert source.tolist() == [1, 1]
    assert layout.unflatten(vector)["a"].data_ptr() == vector.data_ptr()


def test_a_layout_holds_trainable_parameters_alone():
    net = network()
    names = [slot.name for slot in Layout.of(net).slots]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert list(parameters.trainable(net)) == names
    assert set(parameters.buffers(net)) == {
        "2.running_mean",
        "2.running_var",
        "2.num_batches_tracked",
    }


def test_batch_statistics_never_enter_the_vector():
    net = network()
    layout = Layout.of(net)
    before = layout.flatten(parameters.trainable(net))
    statistics = parameters.buffers(net)
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, 3, 3, generator=stream(0, "images")))
    assert torch.equal(layout.flatten(parameters.trainable(net)), before)
    moved = parameters.buffers(net)
    assert all(not torch.equal(moved[name], statistics[name]) for name in statistics)
    assert moved["2.num_batches_tracked"].dtype == torch.int64


def test_what_is_read_out_is_a_copy():
    net = network()
    held = {**parameters.trainable(net), **parameters.buffers(net)}
    kept = {name: value.clone() for name, value in held.items()}
    for value in net.state_dict().values():
        value.add_(1)
    assert all(torch.equal(held[name], kept[name]) for name in kept)


def test_a_tied_parameter_is_no_buffer():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert parameters.buffers(net) == {}


def test_a_buffer_that_is_not_saved_stays_at_home():
    net = nn.Linear(2, 2)
    net.register_buffer("cache", torch.zeros(1), persistent=False)
    assert parameters.buffers(net) == {}


def test_loading_restores_a_model_exactly():
    source, copy = network(), network()
    with torch.no_grad():
        source[4].weight.copy_(torch.randn(5, 2, generator=stream(0, "weights")))
    source[2].running_var.fill_(3.0)
    source[2].num_batches_tracked.fill_(7)
    before_frozen = copy[1].weight.clone()
    parameters.load(copy, {**parameters.trainable(source), **parameters.buffers(source)})
    for name, value in source.state_dict().items():
        if not name.startswith("1."):
            assert torch.equal(copy.state_dict()[name], value), name
    assert torch.equal(copy[1].weight, before_frozen)


def test_loading_refuses_other_names_and_shapes():
    net = network()
    with pytest.raises(KeyError, match="head"):
        parameters.load(net, {"head": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"4.bias needs shape \(5,\), got \(1,\)"):
        parameters.load(net, {"4.bias": torch.zeros(1)})


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_what_unflatten_made_is_joined_without_a_copy(shapes):
    layout = Layout.from_shapes(shapes)
    matrix = torch.randn(3, layout.dim, generator=stream(0, "matrix"))
    joined = layout.joined(layout.unflatten(matrix[1]))
    assert torch.equal(joined, matrix[1])
    if layout.dim:
        assert joined.data_ptr() == matrix[1].data_ptr()


@pytest.mark.parametrize(
    "pieces",
    [
        lambda v: {"a": v[:4].clone().view(2, 2), "b": v[4:]},
        lambda v: {"a": v[:4].view(2, 2).T, "b": v[4:]},
        lambda v: {"a": v[1:5].view(2, 2), "b": v[3:]},
        lambda v: {"a": v[3:].view(2, 2) if len(v) == 7 else v[:4].view(2, 2), "b": v[:3]},
        lambda v: {"a": v[:4].double().view(2, 2), "b": v[4:].double()},
    ],
)
def test_what_does_not_lie_in_order_is_joined_by_copying(pieces):
    layout = Layout.from_shapes({"a": (2, 2), "b": (3,)})
    tensors = pieces(torch.arange(7.0))
    tensors["b"] = tensors["b"][:3]
    joined = layout.joined(tensors)
    assert torch.equal(joined, layout.flatten(tensors)) and joined.dtype == torch.float32


def test_joined_refuses_another_shape_by_name():
    layout = Layout.from_shapes({"a": (2, 2), "b": (3,)})
    with pytest.raises(ValueError, match=r"parameter a needs shape \(2, 2\), got \(4,\)"):
        layout.joined({"a": torch.zeros(4), "b": torch.zeros(3)})


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [2, 3], [0, 2], [1, 0], [1, 1]])
def test_rows_are_stacked_and_copied_only_where_they_do_not_follow_each_other(rows):
    matrix = torch.randn(4, 5, generator=stream(0, "matrix"))
    stacked = parameters.stacked([matrix[row] for row in rows])
    assert torch.equal(stacked, matrix[rows])
    follow = all(b == a + 1 for a, b in pairwise(rows))
    assert (stacked.data_ptr() == matrix[rows[0]].data_ptr()) == follow


def test_rows_of_several_memories_or_types_are_stacked_as_torch_does():
    rows = [torch.ones(3), torch.zeros(3)]
    assert torch.equal(parameters.stacked(rows), torch.stack(rows))
    matrix = torch.randn(3, 4, generator=stream(0, "matrix"))
    columns = [matrix[:, 0], matrix[:, 1]]
    assert torch.equal(parameters.stacked(columns), torch.stack(columns))
