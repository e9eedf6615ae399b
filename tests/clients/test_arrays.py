"""Arrays that are held in memory look like any other array of Flower's."""

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array

from clients.arrays import HeldArray, held_record, holding, to_record, to_tensors


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_it_says_what_an_array_of_bytes_says(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = (10 * torch.rand(shape)).to(dtype)
    held, plain = HeldArray(values), Array(values.numpy())
    for field in ("dtype", "shape", "stype", "data"):
        assert getattr(held, field) == getattr(plain, field)
    assert np.array_equal(held.numpy(), plain.numpy()) and held.numpy().dtype == plain.numpy().dtype


def test_whoever_reads_it_may_change_what_he_got() -> None:
    values = torch.zeros(3)
    read = HeldArray(values).numpy()
    read += 1
    assert values.tolist() == [0, 0, 0]


def test_it_travels_as_a_plain_array_without_the_memory_around_it() -> None:
    matrix = torch.arange(1_000_000, dtype=torch.float32).view(1000, 1000)
    sent = pickle.dumps(HeldArray(matrix[3], owner=matrix))
    assert len(sent) < 10_000
    received = pickle.loads(sent)
    assert type(received) is Array
    assert np.array_equal(received.numpy(), matrix[3].numpy())


def test_a_record_of_them_holds_the_tensors_and_whoever_owns_them() -> None:
    values, owner = torch.zeros(2, 3), object()
    array = held_record({"a": values}, owner)["a"]
    assert isinstance(array, HeldArray) and array.values is values and array.owner is owner


def test_a_reply_holds_its_values_only_where_an_engine_says_so() -> None:
    """A real server knows no class but Flower's: the very type of what is sent matters."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    plain = to_record(tensors)
    with holding():
        held = to_record(tensors)
    assert {type(array) for array in plain.values()} == {Array}
    assert {type(array) for array in held.values()} == {HeldArray}
    assert {type(array) for array in to_record(tensors).values()} == {Array}
    for name, value in tensors.items():
        assert held[name].data == plain[name].data
        assert to_tensors(held)[name].data_ptr() == value.data_ptr()
        assert torch.equal(to_tensors(plain)[name], value)


def test_an_engine_that_fails_holds_nothing_afterwards() -> None:
    with pytest.raises(RuntimeError), holding():
        raise RuntimeError
    assert type(to_record({"w": torch.ones(2)})["w"]) is Array
