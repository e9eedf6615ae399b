import numpy as np
import pytest

from fedface.data.partition.iid import Iid
from fedface.random import numpy_stream

RNG_NAME = "iid test"


@pytest.mark.parametrize(("n_images", "n_clients"), [(10, 3), (7, 7), (9, 1), (1000, 13)])
def test_shares_are_as_equal_as_can_be(n_images: int, n_clients: int) -> None:
    parts = Iid()(np.zeros(n_images, np.int64), n_clients, numpy_stream(0, RNG_NAME))
    sizes = sorted(len(part) for part in parts)
    assert sizes[-1] - sizes[0] <= 1 and sum(sizes) == n_images


def test_identities_are_spread_like_cards() -> None:
    """Images of one identity at one client are hypergeometric: mean and variance, 2000 draws."""
    n_images, n_own, n_clients = 60, 12, 3
    identities = np.array([1] * n_own + [0] * (n_images - n_own))
    first = (Iid()(identities, n_clients, numpy_stream(s, RNG_NAME))[0] for s in range(2000))
    found = np.array([identities[part].sum() for part in first])
    share = 1 / n_clients
    variance = n_own * share * (1 - share) * (n_images - n_own) / (n_images - 1)
    assert abs(found.mean() - n_own * share) < 4 * np.sqrt(variance / 2000)
    assert 0.87 < found.var() / variance < 1.13  # 4 standard errors of a variance: 4 sqrt(2 / 2000)


@pytest.mark.parametrize("n_clients", [-1, 0, 6])
def test_impossible_numbers_of_clients(n_clients: int) -> None:
    with pytest.raises(ValueError, match=rf"n_clients={n_clients}, n_images=5"):
        Iid()(np.arange(5), n_clients, numpy_stream(0, RNG_NAME))
