import itertools

import numpy as np
import pytest

from fedface.data.partition.by_identity import ByIdentity
from fedface.random import numpy_stream


@pytest.mark.parametrize(("n_identities", "n_clients"), [(10, 3), (7, 7), (9, 1), (101, 25)])
def test_identities_are_disjoint_and_balanced(n_identities: int, n_clients: int) -> None:
    rng = numpy_stream(0, "test")
    identities = rng.permutation(np.repeat(np.arange(n_identities) * 3 - 5, 1 + rng.integers(0, 9)))
    parts = ByIdentity()(identities, n_clients, rng)
    people = [set(identities[part].tolist()) for part in parts]
    assert all(not a & b for a, b in itertools.combinations(people, 2))
    sizes = sorted(map(len, people))
    assert sizes[-1] - sizes[0] <= 1 and sum(sizes) == n_identities


def test_every_grouping_is_equally_likely() -> None:
    """4 identities on 2 clients: each of the 6 assignments in 1/6 of 1200 draws (4 sigma)."""
    identities = np.array([0, 1, 1, 2, 3, 3])
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        part = ByIdentity()(identities, 2, numpy_stream(seed, "test"))[0]
        people = tuple(np.unique(identities[part]).tolist())
        seen[people] = seen.get(people, 0) + 1
    assert set(seen) == set(itertools.combinations(range(4), 2))
    assert all(abs(count - 200) < 4 * np.sqrt(1200 / 6 * 5 / 6) for count in seen.values())


@pytest.mark.parametrize("n_clients", [-1, 0, 4])
def test_impossible_numbers_of_clients(n_clients: int) -> None:
    with pytest.raises(ValueError, match=rf"n_clients={n_clients}, n_identities=3"):
        ByIdentity()(np.array([5, 5, 7, 9, 9]), n_clients, numpy_stream(0, "test"))
