from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedface.data.partition import AnyPartition, ByIdentity, Dirichlet, Iid
from fedface.random import numpy_stream

PARTITIONS = [ByIdentity(), Iid(), Dirichlet(alpha=0.5, min_size=1)]


def assert_each_index_once(parts: list[np.ndarray], n_images: int, n_clients: int) -> None:
    assert len(parts) == n_clients
    assert all(part.dtype == np.int64 and len(part) and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n_images))


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p.name)
@settings(deadline=None)
@given(data=st.data())
def test_every_index_exactly_once(partition: AnyPartition, data: st.DataObject) -> None:
    n_identities = data.draw(st.integers(1, 12))
    counts = data.draw(st.lists(st.integers(5, 9), min_size=n_identities, max_size=n_identities))
    names = data.draw(st.permutations(range(-3, n_identities - 3)))  # any integers, in any order
    identities = np.repeat(np.array(names, np.int64), counts)
    identities = identities[data.draw(st.permutations(range(len(identities))))]
    n_clients = data.draw(st.integers(1, min(n_identities, 4)))
    before = identities.copy()
    seed = data.draw(st.integers(0, 99))
    parts = partition(identities, n_clients, numpy_stream(seed, "partition"))
    assert_each_index_once(parts, len(identities), n_clients)
    assert np.array_equal(identities, before)


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p.name)
def test_the_stream_decides(partition: AnyPartition) -> None:
    identities = np.repeat(np.arange(40), 10)

    def draw(seed: int) -> list[list[int]]:
        return [p.tolist() for p in partition(identities, 5, numpy_stream(seed, "partition"))]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p.name)
def test_every_client_is_treated_alike(partition: AnyPartition) -> None:
    """Each client's expected share is 1 / n_clients: 200 draws of 20 x 3 images on 4 clients."""
    identities = np.repeat(np.arange(20), 3)
    sizes = np.array(
        [[len(p) for p in partition(identities, 4, numpy_stream(s, "p"))] for s in range(200)]
    )
    error = sizes.std(axis=0, ddof=1) / np.sqrt(200)
    assert (abs(sizes.mean(axis=0) - 15) <= 4 * error).all()  # 0 <= 0 where all sizes are equal


def test_names_choose_partitions() -> None:
    parse: Callable[[object], AnyPartition] = TypeAdapter(AnyPartition).validate_python
    assert parse({"name": "by_identity"}) == ByIdentity()
    assert parse({"name": "iid"}) == Iid()
    assert parse({"name": "dirichlet", "alpha": 0.1}) == Dirichlet(alpha=0.1, min_size=10)
    for wrong in ({"name": "other"}, {"name": "iid", "alpha": 1.0}, {"name": "dirichlet"}):
        with pytest.raises(ValidationError):
            parse(wrong)
