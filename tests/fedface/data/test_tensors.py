import warnings

import numpy as np
import pytest
import torch

from fedface.data.tensors import to_float


def test_matches_the_formula_by_loops():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    tensor = to_float(images)
    assert tensor.shape == (2, 3, 3, 5) and tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    for n in range(2):
        for y in range(3):
            for x in range(5):
                for c in range(3):
                    expected = (float(images[n, y, x, c]) / 255 - 0.5) / 0.5
                    assert float(tensor[n, c, y, x]) == pytest.approx(expected, abs=1e-6)


def test_black_and_white_are_the_ends():
    assert torch.equal(to_float(np.zeros((1, 2, 2, 3), np.uint8)), -torch.ones(1, 3, 2, 2))
    assert torch.equal(to_float(np.full((1, 2, 2, 3), 255, np.uint8)), torch.ones(1, 3, 2, 2))


def test_read_only_memory_maps_are_copied_without_a_warning(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", stored)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_float(images).zero_()
        to_float(images[:, :, ::-1])
    np.testing.assert_array_equal(images, stored)


def test_one_pixel_images_do_not_share_memory():
    images = np.full((1, 1, 1, 3), 7, np.uint8)
    to_float(images).zero_()
    assert np.all(images == 7)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
    ],
)
def test_refuses_other_arrays(images):
    with pytest.raises(ValueError, match="images need shape"):
        to_float(images)
