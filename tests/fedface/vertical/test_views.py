import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from fedface.vertical.views import AnyViews, LeftRight, Quadrants, TopBottom, features


def pictures(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3)).astype(np.uint8)


def test_halves_and_quarters_together_are_the_picture() -> None:
    images = pictures(3, 6, 8)
    left, right = LeftRight().cut(images)
    assert np.array_equal(np.concatenate([left, right], 2), images)
    top, bottom = TopBottom().cut(images)
    assert np.array_equal(np.concatenate([top, bottom], 1), images)
    a, b, c, d = Quadrants().cut(images)
    rows = [np.concatenate(pair, 2) for pair in ((a, b), (c, d))]
    assert np.array_equal(np.concatenate(rows, 1), images)


def test_the_middle_of_an_odd_picture_is_left_out() -> None:
    images = pictures(2, 5, 7)
    left, right = LeftRight().cut(images)
    assert np.array_equal(left, images[:, :, :3]) and np.array_equal(right, images[:, :, 4:])
    assert Quadrants().cut(images)[0].shape == (2, 2, 3, 3)


@pytest.mark.parametrize("views", [LeftRight(size=16), TopBottom(size=16), Quadrants(size=16)])
def test_views_are_stretched_to_squares_image_by_image_and_are_copies(views) -> None:
    images = pictures(4, 24, 24)
    cut = views.cut(images)
    assert len(cut) == len(views.views)
    for number, view in enumerate(cut):
        assert view.shape == (4, 16, 16, 3) and view.dtype == np.uint8
        assert np.array_equal(view[2:], views.cut(images[2:])[number])
        assert not np.shares_memory(view, images)
        assert views.cut(images[:0])[number].shape == (0, 16, 16, 3)


def test_a_stretched_half_shows_that_half_alone() -> None:
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, :, 8:] = 200
    left, right = LeftRight(size=16).cut(images)
    assert left.max() == 0 and right.min() == 200


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), r"\(n, height, width, 3\) .* got \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 3)), "dtype uint8, .*float64"),
        (np.zeros((2, 4, 1, 3), np.uint8), "2 x 2 pixels or more"),
    ],
)
def test_what_cannot_be_cut_is_refused(images: np.ndarray, message: str) -> None:
    for views in (LeftRight(), TopBottom(), Quadrants()):
        with pytest.raises(ValueError, match=message):
            views.cut(images)


def test_the_union_reads_each_by_name() -> None:
    read = TypeAdapter(AnyViews).validate_python
    for name in ("left_right", "top_bottom", "quadrants"):
        assert read({"name": name, "size": 16}).name == name


def test_what_a_bottom_model_reads() -> None:
    pictures = np.full((2, 4, 4, 3), 255, np.uint8)
    assert torch.equal(features(pictures), torch.ones(2, 3, 4, 4))
    table = np.array([[0.5, -2.0], [0.0, 1.0]], np.float32)
    assert torch.equal(features(table), torch.from_numpy(table))
    table[0, 0] = np.nan
    for wrong in (table, np.zeros((2, 2)), np.zeros((2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="need"):
            features(wrong)
