from io import BytesIO

import numpy as np
import pytest

from fedface.npy import to_npy

RNG = np.random.default_rng(0)

ARRAYS = [
    RNG.standard_normal((3, 4, 5)).astype(np.float32),
    RNG.standard_normal((4, 6))[::2, 1::3],
    np.asfortranarray(RNG.standard_normal((4, 6))),
    RNG.standard_normal((4, 6)).T,
    np.float32(3.5)[None][0] * np.ones(()),
    np.zeros((0, 7), np.int64),
    np.array([True, False]),
    np.arange(5, dtype=">i4"),
    np.array([1 + 2j]),
    np.array(["a", "bcd"]),
]


@pytest.mark.parametrize("values", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_numpy_reads_back_what_was_written(values):
    found = np.load(BytesIO(to_npy(values)), allow_pickle=False)
    assert found.dtype == values.dtype and found.shape == values.shape
    assert np.array_equal(found, values)


@pytest.mark.parametrize("values", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_the_bytes_are_those_of_numpy(values):
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(values).reshape(values.shape), allow_pickle=False)
    assert to_npy(values) == buffer.getvalue()


def test_objects_are_refused():
    with pytest.raises(ValueError, match="npy needs numbers or text, got object"):
        to_npy(np.array([object()]))
