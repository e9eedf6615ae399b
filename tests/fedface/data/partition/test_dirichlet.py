import numpy as np
import pytest
from pydantic import ValidationError

from fedface.data.partition.dirichlet import Dirichlet, draw_owners
from fedface.random import numpy_stream


def counts_of(identities: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """``(n_identities, n_clients)`` images of each identity at each client, counted by a loop."""
    table = np.zeros((identities.max() + 1, len(parts)), np.int64)
    for client, part in enumerate(parts):
        for index in part:
            table[identities[index], client] += 1
    return table


def concentration(counts: np.ndarray) -> tuple[float, float]:
    """The mean over identities of sum_j c_j (c_j - 1) / (n (n - 1)), and its standard error.

    It estimates E[sum_j p_j^2] without bias: the chance that two images share a client.
    """
    n = counts.sum(axis=1)
    values = (counts * (counts - 1)).sum(axis=1) / (n * (n - 1))
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def expected_concentration(alpha: float, n_clients: int) -> float:
    """E[sum_j p_j^2] for p ~ Dir(alpha, ..., alpha): (alpha + 1) / (n_clients alpha + 1)."""
    return (alpha + 1) / (n_clients * alpha + 1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("n_images", [4, 30])
def test_proportions_are_dirichlet_of_this_alpha_and_no_other(alpha: float, n_images: int) -> None:
    identities = np.repeat(np.arange(2000), n_images)
    parts = Dirichlet(alpha=alpha)(identities, 5, numpy_stream(0, "dirichlet test"))
    mean, error = concentration(counts_of(identities, parts))
    assert abs(mean - expected_concentration(alpha, 5)) < 4 * error
    for wrong in (alpha / 3, alpha * 3):
        assert abs(mean - expected_concentration(wrong, 5)) > 4 * error


def test_the_oracle_tells_numpy_s_own_dirichlet_apart() -> None:
    rng = numpy_stream(0, "oracle")
    for alpha in (0.1, 0.5, 3.0):
        p = rng.dirichlet(np.full(5, alpha), 20_000)
        assert (p**2).sum(axis=1).mean() == pytest.approx(
            expected_concentration(alpha, 5), rel=0.02
        )


def test_small_identities_starve_no_client() -> None:
    """Two images each: cutting at floor(cumsum(p) n) would feed the last client half as much again.

    Sizes: variance of one client's total over 3000 identities is 3000 n v (1 + (n - 1) rho), with
    v = p (1 - p), rho = 1 / (n_clients alpha + 1).
    """
    identities = np.repeat(np.arange(3000), 2)
    sizes = np.bincount(draw_owners(identities, 4, 0.5, numpy_stream(0, "sizes")), minlength=4)
    deviation = np.sqrt(3000 * 2 * 0.25 * 0.75 * (1 + 1 / (4 * 0.5 + 1)))
    assert (abs(sizes - 1500) < 4 * deviation).all()
    assert 4 * deviation < 250  # floor(cumsum) is off by about 3000 / 2


def test_which_images_a_client_gets_is_random_too() -> None:
    identities = np.zeros(10, np.int64)
    n_shared = sum(
        bool(np.equal(*draw_owners(identities, 2, 1.0, numpy_stream(s, "images"))[[0, 9]]))
        for s in range(600)
    )
    expected = expected_concentration(1.0, 2)  # 2/3 for any two images, the first and last too
    assert abs(n_shared / 600 - expected) < 4 * np.sqrt(expected * (1 - expected) / 600)


def test_limits_of_alpha() -> None:
    identities = np.repeat(np.arange(400), 20)
    lonely = Dirichlet(alpha=1e-6)(identities, 4, numpy_stream(0, "limits"))
    assert ((counts_of(identities, lonely) > 0).sum(axis=1) == 1).all()
    even = Dirichlet(alpha=1e6)(identities, 4, numpy_stream(0, "limits"))
    mean, error = concentration(counts_of(identities, even))
    assert abs(mean - 1 / 4) < 4 * error
    for alpha in (0.0, -1.0, 1e-7, 1e7, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Dirichlet(alpha=alpha)
    with pytest.raises(ValidationError):
        Dirichlet(alpha=1.0, min_size=0)


def test_min_size_holds_and_is_needed() -> None:
    identities = np.repeat(np.arange(10), 10)
    found = []
    for seed in range(50):
        parts = Dirichlet(alpha=0.3, min_size=10)(identities, 4, numpy_stream(seed, "min size"))
        assert min(map(len, parts)) >= 10
        loose = Dirichlet(alpha=0.3, min_size=1)(identities, 4, numpy_stream(seed, "min size"))
        found.append(min(map(len, loose)))
    assert min(found) < 10


def test_a_minimum_that_no_draw_reaches() -> None:
    identities = np.zeros(100, np.int64)  # one identity, alpha near 0: always a single client
    with pytest.raises(ValueError, match=r"within 100 draws, got at best 0 .*alpha=1e-06"):
        Dirichlet(alpha=1e-6, min_size=1)(identities, 2, numpy_stream(0, "never"))


def test_one_client_gets_all() -> None:
    (part,) = Dirichlet(alpha=0.1, min_size=7)(np.arange(7), 1, numpy_stream(0, "one"))
    assert part.tolist() == list(range(7))


@pytest.mark.parametrize(("n_clients", "min_size"), [(-1, 1), (0, 1), (8, 1), (2, 4)])
def test_impossible_settings(n_clients: int, min_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"n_clients={n_clients}, min_size={min_size}, n_images=7"
    ):
        Dirichlet(alpha=1.0, min_size=min_size)(np.arange(7), n_clients, numpy_stream(0, "none"))
