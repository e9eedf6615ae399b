import pytest
import torch

from fedface.random import stream
from fedface.vertical.augmentation import Augmentation


def views(n: int = 40) -> torch.Tensor:
    return 2 * torch.rand(n, 3, 8, 8, generator=stream(0, "views")) - 1


def test_off_by_default() -> None:
    images = views()
    assert torch.equal(Augmentation()(images, stream(0)), images)


def test_a_shift_moves_each_view_by_whole_pixels_and_repeats_the_edge() -> None:
    images = views(200)
    moved = Augmentation(shift=2)(images, stream(0))
    found = set()
    for before, after in zip(images, moved, strict=True):
        fits = [
            (down, across)
            for down in range(-2, 3)
            for across in range(-2, 3)
            if torch.equal(after, by_hand(before, down, across))
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) == 25


def by_hand(image: torch.Tensor, down: int, across: int) -> torch.Tensor:
    moved = torch.empty_like(image)
    for y in range(8):
        for x in range(8):
            moved[:, y, x] = image[:, min(max(y - down, 0), 7), min(max(x - across, 0), 7)]
    return moved


def test_half_of_the_views_are_mirrored() -> None:
    images = views(400)
    changed = Augmentation(flip=True)(images, stream(0))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(changed, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250


def test_brightness_and_contrast_stay_in_range_and_leave_the_input() -> None:
    images = views()
    before = images.clone()
    changed = Augmentation(brightness=0.5, contrast=0.5)(images, stream(0))
    assert torch.equal(images, before)
    assert changed.abs().max() <= 1
    brighter = Augmentation(brightness=0.1)(0.5 * images, stream(0)) - 0.5 * images
    assert torch.allclose(brighter, brighter[:, :1, :1, :1].expand_as(brighter), atol=1e-6)
    assert 0.05 < brighter.abs().max() <= 0.1 + 1e-6
    assert (brighter < 0).any() and (brighter > 0).any()


def test_the_same_draw_gives_the_same_views_and_draws_do_not_depend_on_what_is_on() -> None:
    images = views()
    every = Augmentation(shift=1, flip=True, brightness=0.1, contrast=0.1)
    assert torch.equal(every(images, stream(3)), every(images, stream(3)))
    assert not torch.equal(every(images, stream(3)), every(images, stream(4)))
    first, second = stream(3), stream(3)
    Augmentation()(images, first)
    every(images, second)
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


def test_no_views_and_views_that_are_too_small() -> None:
    assert Augmentation(shift=1, flip=True)(views(0), stream(0)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="shift=8 needs views larger than it"):
        Augmentation(shift=8)(views(), stream(0))


def test_attributes_stay_as_they_are() -> None:
    table = torch.randn(5, 3, generator=stream(0, "attributes"))
    every = Augmentation(shift=1, flip=True, brightness=0.5, contrast=0.5)
    assert torch.equal(every(table, stream(0)), table)
