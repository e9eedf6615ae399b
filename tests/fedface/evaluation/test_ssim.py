import math

import pytest
import torch

from fedface.evaluation.ssim import ssim
from fedface.random import stream


def by_definition(x, y, white: float) -> float:
    """Wang et al., equation 13, window by window."""
    weights = [
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
        for i in range(11)
    ]
    total = sum(map(sum, weights))
    c1, c2 = (0.01 * white) ** 2, (0.03 * white) ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            places = [(i, j) for i in range(11) for j in range(11)]
            w = [weights[i][j] / total for i, j in places]
            a = [float(x[top + i, left + j]) for i, j in places]
            b = [float(y[top + i, left + j]) for i, j in places]
            mean_a = sum(p * q for p, q in zip(w, a, strict=True))
            mean_b = sum(p * q for p, q in zip(w, b, strict=True))
            var_a = sum(p * (q - mean_a) ** 2 for p, q in zip(w, a, strict=True))
            var_b = sum(p * (q - mean_b) ** 2 for p, q in zip(w, b, strict=True))
            both = sum(p * (q - mean_a) * (r - mean_b) for p, q, r in zip(w, a, b, strict=True))
            found.append(
                (2 * mean_a * mean_b + c1)
                * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return sum(found) / len(found)


@pytest.mark.parametrize("white", [2.0, 255.0])
def test_it_is_the_papers_definition(white: float) -> None:
    rng = stream(0, "ssim")
    x = torch.rand(2, 2, 13, 12, generator=rng) * white
    y = 0.5 * x + 0.5 * torch.rand(2, 2, 13, 12, generator=rng) * white
    found = ssim(x, y, white)
    for n in range(2):
        expected = sum(by_definition(x[n, c], y[n, c], white) for c in range(2)) / 2
        assert float(found[n]) == pytest.approx(expected, abs=1e-12)


def test_equal_images_have_one_and_it_is_symmetric() -> None:
    x, y = torch.rand(2, 4, 3, 16, 16, generator=stream(0, "x"))
    assert torch.allclose(ssim(x, x), torch.ones(4, dtype=torch.float64))
    assert torch.equal(ssim(x, y), ssim(y, x))
    assert float(ssim(x, 1 - x).max()) < 0


def test_flat_images_differ_in_luminance_alone() -> None:
    x, y = torch.full((1, 3, 11, 11), 0.5), torch.full((1, 3, 11, 11), 0.25)
    c1 = 0.01**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert float(ssim(x, y)) == pytest.approx(expected)


def test_more_noise_is_less_alike() -> None:
    rng = stream(0, "noise")
    x, other = torch.rand(2, 8, 3, 16, 16, generator=rng)
    means = [float(ssim(x, (1 - s) * x + s * other).mean()) for s in (0.0, 0.1, 0.5, 1.0)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("x", "y", "white"),
    [
        (torch.zeros(1, 3, 11, 11), torch.zeros(1, 3, 11, 12), 2.0),
        (torch.zeros(1, 3, 10, 11), torch.zeros(1, 3, 10, 11), 2.0),
        (torch.zeros(3, 11, 11), torch.zeros(3, 11, 11), 2.0),
        (torch.zeros(1, 3, 11, 11), torch.zeros(1, 3, 11, 11), 0.0),
        (torch.zeros(1, 3, 11, 11), torch.full((1, 3, 11, 11), -0.5), 1.0),
        (torch.full((1, 3, 11, 11), 1.5), torch.zeros(1, 3, 11, 11), 1.0),
    ],
)
def test_impossible_inputs_are_refused(x, y, white: float) -> None:
    with pytest.raises(ValueError, match="needs"):
        ssim(x, y, white)
