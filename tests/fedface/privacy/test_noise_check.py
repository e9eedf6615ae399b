import math

import pytest
import torch
from scipy.stats import chi2

from fedface.privacy import EmbeddingRelease
from fedface.privacy.noise_check import check_noise
from fedface.random import stream


@pytest.mark.parametrize("share", [2 / 3, 1.0, 3 / 2])
def test_the_noise_scale_is_checked_both_ways(share: float) -> None:
    release = EmbeddingRelease(epsilon=4.0, n_releases=1)
    h = torch.nn.functional.normalize(torch.randn(100, 8, generator=stream(0, "h")))
    z = EmbeddingRelease(sigma=release.noise * share, n_releases=1).release(h, stream(0, "z"))
    found = check_noise(z - h, release.noise, 0.99)
    assert found.low <= release.noise * share <= found.high
    if share == 1.0:
        assert found.scale_p_value > 0.01 and found.shape_p_value > 0.01
    else:
        assert found.scale_p_value < 1e-6
        assert not found.low <= release.noise <= found.high


def test_another_distribution_of_the_same_scale_is_rejected() -> None:
    uniform = torch.rand(20000, generator=stream(0, "uniform"), dtype=torch.float64) - 0.5
    found = check_noise(uniform * math.sqrt(12), 1.0)
    assert found.shape_p_value < 1e-6
    assert found.estimate == pytest.approx(1.0, abs=0.02)


def test_noise_used_twice_is_rejected() -> None:
    release, h = EmbeddingRelease(sigma=2.0, n_releases=2), torch.zeros(500, 4)
    rng = stream(0, "z")
    fresh = release.release(h, rng) - release.release(h, rng)
    assert check_noise(fresh / math.sqrt(2), 2.0).scale_p_value > 0.01
    again = release.release(h, stream(0, "z")) - release.release(h, stream(0, "z"))
    assert check_noise(again / math.sqrt(2) + 1e-9, 2.0).scale_p_value < 1e-6


def test_figures_by_their_definition() -> None:
    found = check_noise(torch.tensor([1.0, -2.0, 2.0]), 2.0, 0.9)
    assert found.estimate == pytest.approx(math.sqrt(3))
    assert chi2.sf(9 / found.low**2, 3) == pytest.approx(0.05)
    assert chi2.cdf(9 / found.high**2, 3) == pytest.approx(0.05)
    assert found.scale_p_value == pytest.approx(2 * min(chi2.cdf(9 / 4, 3), chi2.sf(9 / 4, 3)))


@pytest.mark.parametrize(
    ("residuals", "sigma", "confidence", "message"),
    [
        (torch.zeros(1), 1.0, 0.9, "two or more"),
        (torch.zeros(3), 0.0, 0.9, "sigma"),
        (torch.full((3,), torch.nan), 1.0, 0.9, "3 are not finite"),
        (torch.ones(3), 1.0, 1.0, "confidence"),
    ],
)
def test_impossible_inputs_are_refused(residuals, sigma, confidence, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_noise(residuals, sigma, confidence)
