import numpy as np
import pytest
import torch
from torch import nn

from fedface.data.tensors import to_float
from fedface.evaluation.embedding import embed


class Linear(nn.Module):
    """A backbone with batch statistics and a frozen part."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * 4 * 4, 5, generator=generator))
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Dropout(0.5)

    def forward(self, images):
        return self.frozen(self.norm(images.flatten(1) @ self.weight))


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return torch.full((len(images), 4), self.value)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


def patch(batch):
    triggered = batch.clone()
    triggered[:, :, 0, 0] = 1
    return triggered


def by_hand(backbone, images, transform=lambda x: x, flip=True):
    backbone.eval()
    rows = []
    with torch.no_grad():
        for image in images:
            row = backbone(transform(to_float(image[None])))[0].double().numpy()
            if flip:
                mirror = np.ascontiguousarray(image[:, ::-1])
                row = row + backbone(transform(to_float(mirror[None])))[0].double().numpy()
            rows.append(row / np.sqrt((row**2).sum()))
    return np.array(rows)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("transform", [None, patch])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_matches_one_image_at_a_time(images, flip, transform, batch_size):
    embeddings = embed(Linear(), images, batch_size=batch_size, transform=transform, flip=flip)
    expected = by_hand(Linear(), images, transform or (lambda x: x), flip)
    assert embeddings.shape == (7, 5) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_flip_makes_mirror_images_equal_but_not_under_no_flip(images):
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    both = embed(Linear(), images), embed(Linear(), mirrored)
    np.testing.assert_allclose(*both, atol=1e-6)
    one = embed(Linear(), images, flip=False), embed(Linear(), mirrored, flip=False)
    assert np.abs(one[0] - one[1]).max() > 0.1


def test_the_trigger_lies_at_its_own_place_in_the_mirror(images):
    seen = []

    class Recorder(nn.Module):
        def forward(self, batch):
            seen.append(batch.clone())
            return batch.flatten(1)

    embed(Recorder(), images, transform=patch)
    assert len(seen) == 2
    for batch in seen:
        assert torch.all(batch[:, :, 0, 0] == 1)
    torch.testing.assert_close(seen[1][:, :, 1:], to_float(images).flip(3)[:, :, 1:])


def test_every_modules_mode_and_every_buffer_survive(images):
    backbone = Linear().train()
    backbone.frozen.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    embed(backbone, images)
    assert backbone.training and backbone.norm.training and not backbone.frozen.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_mode_survives_an_error(images):
    backbone = nn.Sequential(Constant(0.0)).train()
    with pytest.raises(ValueError, match="needs to return shape"):
        embed(nn.Sequential(backbone, nn.Flatten(0)), images)
    assert backbone.training


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_refuses_embeddings_without_a_direction(images, value):
    with pytest.raises(ValueError, match=r"for image 0 \(7 of 7 images\)"):
        embed(Constant(value), images)


def test_names_the_image_without_a_direction(images):
    images[4] = 255
    white_is_zero = nn.Sequential(nn.Flatten(), nn.Threshold(-9.0, 0.0))

    class Difference(nn.Module):
        def forward(self, batch):
            return 1 - white_is_zero(batch)

    with pytest.raises(ValueError, match=r"got 0.0 for image 4 \(1 of 7"):
        embed(Difference(), images, batch_size=2)


def test_huge_and_tiny_embeddings_keep_their_direction(images):
    for value in (1e38, 1e-38):
        np.testing.assert_allclose(embed(Constant(value), images), 0.5, atol=1e-6)


@pytest.mark.parametrize(("n_images", "batch_size"), [(0, 4), (7, 0)])
def test_refuses_nothing_to_do(images, n_images, batch_size):
    with pytest.raises(ValueError, match="embed needs"):
        embed(Linear(), images[:n_images], batch_size=batch_size)


def test_does_not_modify_the_images(images):
    before = images.copy()
    embed(Linear(), images, transform=lambda x: x.zero_() + 1)
    np.testing.assert_array_equal(images, before)
