import pytest
import torch
from torch import nn

from fedface.backbones.contract import check_images, embed, feature_map_size


@pytest.mark.parametrize(("image_size", "side"), [(16, 1), (32, 2), (64, 4), (112, 7), (224, 14)])
def test_feature_map_size(image_size, side):
    assert feature_map_size("x", image_size) == side


@pytest.mark.parametrize("image_size", [-16, 0, 1, 15, 17, 100])
def test_image_size_that_16_does_not_divide(image_size):
    with pytest.raises(ValueError, match=f"x needs image_size .* 16, got image_size={image_size}"):
        feature_map_size("x", image_size)


def test_check_images():
    check_images(torch.zeros(0, 3, 16, 16), 16)
    check_images(torch.zeros(2, 3, 16, 16), 16)
    for shape in ((2, 3, 16, 32), (2, 3, 32, 32), (2, 16, 16, 3), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"needs? shape \(batch, 3, 16, 16\), got"):
            check_images(torch.zeros(shape), 16)


def test_embed_is_exact_under_autocast():
    fc, features = nn.Linear(64, 8), torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = embed(features, fc, nn.Identity())
        assert torch.is_autocast_enabled("cpu")
        assert fc(features).dtype == torch.bfloat16
    assert torch.equal(embeddings, fc(features))


def test_embed_takes_bfloat16_features_and_applies_the_normalization():
    fc, features = nn.Linear(64, 8), torch.randn(4, 64).bfloat16()
    norm = nn.BatchNorm1d(8)
    expected = norm(fc(features.float()))
    assert torch.equal(embed(features, fc, norm), expected)
    assert embed(features, fc.double(), nn.Identity()).dtype == torch.float64
