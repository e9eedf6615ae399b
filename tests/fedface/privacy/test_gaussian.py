import math

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.privacy import gaussian

DELTA = 1e-5


def hockey_stick(epsilon: float, mu: float) -> float:
    """The definition, integrated: int max(0, p - e^epsilon q) for p = N(mu, 1), q = N(0, 1)."""
    with mpmath.workdps(40):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)

        def excess(x):
            p = mpmath.exp(-((x - m) ** 2) / 2)
            q = mpmath.exp(e - x**2 / 2)
            return (p - q) / mpmath.sqrt(2 * mpmath.pi)

        start = e / m + m / 2  # where p = e^epsilon q
        centre = max(start, m)
        points = sorted({start, *(centre + k for k in (0, 0.5, 1, 2, 4, 8, 16, 40))})
        return float(mpmath.quad(excess, [x for x in points if x >= start]))


@pytest.mark.parametrize(
    ("epsilon", "mu"),
    [
        *((0, 0.1), (0, 3), (0.5, 0.14), (1, 0.27), (1, 5), (8, 1.7), (30, 3), (100, 12)),
        *((300, 30), (1000, 50), (1250, 50), (1000, 38), (1e-3, 1e-3), (2, 0.4)),
    ],
)
def test_delta_is_the_integral_of_the_hockey_stick(epsilon: float, mu: float) -> None:
    assert gaussian.delta(epsilon, mu) == pytest.approx(hockey_stick(epsilon, mu), rel=1e-9)


@pytest.mark.parametrize(
    ("n_releases", "replace_one", "zero_out"),
    [
        (1, "14.1 7.46 3.99 2.16 1.20 0.69", "7.0 3.73 1.99 1.08 0.60 0.34"),
        (10, "44.5 23.6 12.6 6.84 3.80 2.18", "22.2 11.8 6.3 3.42 1.90 1.09"),
        (50, "99.5 52.8 28.2 15.3 8.5 4.9", "49.7 26.4 14.1 7.6 4.2 2.4"),
        (100, "141 74.6 39.9 21.6 12.0 6.9", "70 37.3 19.9 10.8 6.0 3.4"),
    ],
)
def test_the_sigma_table_of_the_design(n_releases: int, replace_one: str, zero_out: str) -> None:
    for sensitivity, row in ((2.0, replace_one), (1.0, zero_out)):
        for epsilon, wanted in zip((0.5, 1, 2, 4, 8, 16), row.split(), strict=True):
            found = gaussian.sigma_for(epsilon, DELTA, sensitivity, n_releases)
            assert found == pytest.approx(float(wanted), abs=0.56 * last_digit(wanted))


def last_digit(number: str) -> float:
    """The unit of the last digit printed; half of it is rounding (99.445 stands as 99.5)."""
    return 10.0 ** -len(number.partition(".")[2])


@pytest.mark.parametrize(
    ("sigma", "wanted"),
    [(0.5, "24 133 970"), (1, "10 46 284"), (2, "4.4 18 92"), (4, "2.0 7.5 33"), (8, "0.9 3.3 13")],
)
def test_the_epsilon_table_of_the_design(sigma: float, wanted: str) -> None:
    for n_releases, epsilon in zip((1, 10, 100), wanted.split(), strict=True):
        found = gaussian.epsilon(gaussian.mu(2, sigma, n_releases), DELTA)
        assert found == pytest.approx(float(epsilon), abs=0.52 * last_digit(epsilon))


def test_one_epsilon_to_six_digits() -> None:
    """sigma = C, replace-one, one release: mu = 2; the root of the integral by mpmath."""
    with mpmath.workdps(30):
        root = mpmath.findroot(
            lambda e: (
                mpmath.ncdf(1 - e / 2) - mpmath.exp(e) * mpmath.ncdf(-1 - e / 2) - mpmath.mpf(DELTA)
            ),
            10,
        )
    assert gaussian.epsilon(2, DELTA) == pytest.approx(float(root), rel=1e-9)
    assert gaussian.epsilon(2, DELTA) == pytest.approx(9.9973, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-2, 1e3),
    st.floats(1e-12, 0.5),
    st.floats(1e-3, 1e3),
    st.integers(1, 10_000),
)
def test_sigma_epsilon_and_delta_are_inverse(
    epsilon: float, delta: float, sensitivity: float, n_releases: int
) -> None:
    sigma = gaussian.sigma_for(epsilon, delta, sensitivity, n_releases)
    mu = gaussian.mu(sensitivity, sigma, n_releases)
    assert gaussian.delta(epsilon, mu) <= delta * (1 + 1e-9)
    assert gaussian.delta(epsilon, mu * (1 + 1e-9)) >= delta * (1 - 1e-6)
    assert gaussian.epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 50), st.floats(0, 1e3), st.floats(0.01, 10))
def test_delta_falls_in_epsilon_and_rises_in_mu(mu: float, epsilon: float, step: float) -> None:
    here = gaussian.delta(epsilon, mu)
    assert 0 <= here <= 1
    assert gaussian.delta(epsilon + step, mu) <= here
    assert gaussian.delta(epsilon, mu + step) >= here


def test_composition_and_parties() -> None:
    assert gaussian.mu(2, 4, 9) == pytest.approx(1.5)
    assert gaussian.mu(2, 4, 0) == 0
    assert gaussian.epsilon(0, DELTA) == 0
    assert gaussian.delta(0, 0) == 0
    assert gaussian.joint_sensitivity(2.0, 4) == pytest.approx(4)
    joint = gaussian.joint_sensitivity(2 * gaussian.clip_share(1.5, 7), 7)
    assert joint == pytest.approx(3)


def test_a_delta_that_no_mechanism_needs_gives_epsilon_zero() -> None:
    assert gaussian.epsilon(0.1, 0.5) == 0
    assert gaussian.delta(0, 0.1) == pytest.approx(math.erf(0.05 / math.sqrt(2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.mu(0, 1), "sensitivity needs .* above 0, got 0"),
        (lambda: gaussian.mu(1, 0), "sigma needs .* above 0, got 0"),
        (lambda: gaussian.mu(1, math.inf), "sigma needs"),
        (lambda: gaussian.mu(1, 1, -1), "n_releases needs to be at least 0, got -1"),
        (lambda: gaussian.delta(-1, 1), "epsilon needs .* at least 0, got -1"),
        (lambda: gaussian.delta(1, math.nan), "mu needs .* got nan"),
        (lambda: gaussian.epsilon(1, 0), r"delta needs to lie in \(0, 1\), got 0"),
        (lambda: gaussian.sigma_for(0, DELTA, 1), "epsilon needs .* above 0"),
        (lambda: gaussian.sigma_for(1, 1, 1), "delta needs"),
        (lambda: gaussian.sigma_for(1, DELTA, 1, 0), "n_releases needs to be at least 1, got 0"),
        (lambda: gaussian.joint_sensitivity(1, 0), "n_parties needs to be at least 1, got 0"),
        (lambda: gaussian.clip_share(-1, 1), "clip needs"),
    ],
)
def test_impossible_settings_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
