import pytest
import torch

from fedface.attacks.inversion import Knowledge
from fedface.attacks.inversion.image_prior import Eigenfaces, Smooth, total_variation
from fedface.random import stream
from tests.fedface.attacks.inversion.small_world import SIZE, smooth_pictures

SHADOW = smooth_pictures(30, 5)
KNOWLEDGE = Knowledge(SIZE, None, SHADOW, torch.zeros(30, 2))


def test_total_variation_is_the_mean_squared_step() -> None:
    x = torch.rand(2, 3, 4, 5, generator=stream(0))
    for n in range(2):
        vertical = [
            float((x[n, c, i + 1, j] - x[n, c, i, j]) ** 2)
            for c in range(3)
            for i in range(3)
            for j in range(5)
        ]
        horizontal = [
            float((x[n, c, i, j + 1] - x[n, c, i, j]) ** 2)
            for c in range(3)
            for i in range(4)
            for j in range(4)
        ]
        expected = sum(vertical) / len(vertical) + sum(horizontal) / len(horizontal)
        assert float(total_variation(x)[n]) == pytest.approx(expected, rel=1e-5)


def test_pixels_start_grey_or_at_the_mean_and_stay_in_range() -> None:
    grey, mean = (Smooth(start=start).build(KNOWLEDGE) for start in ("grey", "mean"))
    assert torch.equal(grey.start, torch.zeros(3, SIZE, SIZE))
    assert torch.allclose(mean.start, SHADOW.mean(0))
    assert float(grey.project(torch.full((1, 3, 2, 2), 5.0)).max()) == 1
    assert torch.allclose(
        Smooth(weight=3.0).build(KNOWLEDGE).cost(SHADOW), 3 * total_variation(SHADOW)
    )


def test_eigenfaces_are_standard_normal_coordinates_of_the_shadow_pictures() -> None:
    canvas = Eigenfaces(n_components=16, weight=1.0).build(KNOWLEDGE)
    assert torch.allclose(canvas.paint(canvas.start[None])[0], SHADOW.mean(0), atol=1e-6)
    basis = canvas.paint(torch.eye(16)) - SHADOW.mean(0)
    away = (SHADOW - SHADOW.mean(0)).flatten(1)
    codes = torch.linalg.lstsq(basis.flatten(1).T, away.T).solution.T
    assert torch.allclose(canvas.paint(codes), SHADOW, atol=1e-3)  # 16 coarse numbers: all of it
    assert torch.allclose(codes.var(0), torch.ones(16), atol=1e-3)
    assert torch.allclose(canvas.cost(codes), codes.square().mean(1))


def test_there_are_fewer_components_than_pictures() -> None:
    few = Knowledge(SIZE, None, SHADOW[:5], torch.zeros(5, 2))
    assert Eigenfaces().build(few).start.shape == (4,)
    none = Knowledge(SIZE, None, SHADOW[:1], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="eigenface"):
        Eigenfaces().build(none)
    with pytest.raises(ValueError, match="mean picture"):
        Smooth(start="mean").build(none)
