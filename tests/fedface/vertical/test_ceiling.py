import math

import numpy as np
import pytest
from scipy.stats import norm

from fedface.random import numpy_stream
from fedface.vertical.ceiling import binary_ceiling, ceiling_at, crossing_p_value, utility_ceiling


@pytest.mark.parametrize(
    ("neighbour", "row"),
    [
        ("replace_one", (52.8, 55.3, 59.9, 67.8, 79.8, 92.7)),
        ("zero_out", (55.7, 60.6, 69.2, 82.2, 95.2, 99.8)),
    ],
)
def test_the_table_of_the_design(neighbour: str, row: tuple[float, ...]) -> None:
    for epsilon, wanted in zip((0.5, 1, 2, 4, 8, 16), row, strict=True):
        assert 100 * ceiling_at(epsilon, 1e-5, neighbour) == pytest.approx(wanted, abs=0.055)


def test_opposite_points_reach_the_binary_ceiling_and_it_is_phi_of_c_over_sigma() -> None:
    rng = numpy_stream(0, "binary")
    clip, sigma, n = 1.3, 2.0, 200_000
    side = rng.choice([-1, 1], n)
    right = int(((side * clip + sigma * rng.normal(size=n)) * side > 0).sum())
    ceiling = utility_ceiling(clip, sigma)
    assert ceiling == pytest.approx(norm.cdf(clip / sigma))
    assert crossing_p_value(right, n, ceiling) > 1e-3
    assert right / n > ceiling - 0.005
    assert crossing_p_value(right, n, utility_ceiling(clip, 1.5 * sigma)) < 1e-9


@pytest.mark.parametrize("n_classes", [2, 3, 8, 40])
@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0])
def test_the_best_decision_between_many_classes_stays_below(n_classes: int, ratio: float) -> None:
    """The orthoplex and the simplex, decided by the nearest mean (best at even odds)."""
    rng = numpy_stream(1, "many")
    means = np.eye(n_classes) - 1 / n_classes
    means *= ratio / np.linalg.norm(means, axis=1, keepdims=True)
    labels = rng.integers(0, n_classes, 20_000)
    z = means[labels] + rng.normal(size=(20_000, n_classes))
    right = int(((z @ means.T).argmax(1) == labels).sum())
    ceiling = utility_ceiling(ratio, 1.0, 1 / n_classes)
    assert crossing_p_value(right, 20_000, ceiling) > 1e-3
    assert right / 20_000 > 1 / n_classes


@pytest.mark.parametrize("p", [0.5, 0.7, 0.99])
@pytest.mark.parametrize("ratio", [0.1, 1.0, 2.5])
def test_uneven_odds_are_the_integral_of_the_larger_density(p: float, ratio: float) -> None:
    x = np.linspace(-30, 30, 400_001)
    best = np.maximum(p * norm.pdf(x, ratio), (1 - p) * norm.pdf(x, -ratio))
    wanted = float(best.sum() * (x[1] - x[0]))
    assert binary_ceiling(ratio, 1.0, p) == pytest.approx(wanted, abs=1e-6)
    assert binary_ceiling(ratio, 1.0, p) <= utility_ceiling(ratio, 1.0, p) + 1e-12


def test_side_information_of_the_active_party_is_in_the_bound() -> None:
    """Two noisy looks at one bit: the active party's own, and the passive party's."""
    rng = numpy_stream(2, "side")
    n, own_ratio, ratio = 100_000, 0.8, 0.6
    side = rng.choice([-1, 1], n)
    own, z = own_ratio * side + rng.normal(size=n), ratio * side + rng.normal(size=n)
    right = int(((own_ratio * own + ratio * z) * side > 0).sum())
    ceiling = utility_ceiling(ratio, 1.0, prior_accuracy=norm.cdf(own_ratio))
    assert norm.cdf(math.hypot(own_ratio, ratio)) < ceiling
    assert crossing_p_value(right, n, ceiling) > 0.5


def test_several_embeddings_and_parties() -> None:
    assert utility_ceiling(1, 2, n_embeddings=4) == pytest.approx(utility_ceiling(2, 2))
    assert ceiling_at(4, 1e-5, n_parties=5) == pytest.approx(ceiling_at(4, 1e-5))
    assert ceiling_at(4, 1e-5, n_releases=50) < ceiling_at(4, 1e-5, n_releases=10)
    assert ceiling_at(4, 1e-5, n_releases=10, prior_accuracy=0.9) > 0.9


def test_the_crossing_is_a_binomial_tail() -> None:
    exact = sum(math.comb(10, k) * 0.6**k * 0.4 ** (10 - k) for k in range(8, 11))
    assert crossing_p_value(8, 10, 0.6) == pytest.approx(exact)
    assert crossing_p_value(0, 10, 0.6) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utility_ceiling(1, 1, 1.0), r"prior_accuracy needs to lie in \(0, 1\), got 1"),
        (lambda: utility_ceiling(0, 1), "sensitivity needs"),
        (lambda: utility_ceiling(1, 1, n_embeddings=0), "n_embeddings needs .* got 0"),
        (lambda: binary_ceiling(1, 1, 0), r"prior needs to lie in \(0, 1\), got 0"),
        (lambda: binary_ceiling(1, 1, 0.5, 0), "n_embeddings needs"),
        (lambda: crossing_p_value(3, 2, 0.5), "n_right=3, n=2"),
        (lambda: crossing_p_value(1, 2, 0), "ceiling=0"),
    ],
)
def test_impossible_settings_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
