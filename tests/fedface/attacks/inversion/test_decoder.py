import pytest
import torch

from fedface.attacks.inversion import Decoder, Knowledge
from fedface.attacks.inversion.decoder import decoder
from fedface.privacy import EmbeddingRelease, Unprotected
from fedface.random import stream
from tests.fedface.attacks.inversion.small_world import (
    SIZE,
    likeness,
    nearest_truth,
    scene,
)

ATTACK = Decoder(width=32, epochs=20, learning_rate=5e-3)


def test_pictures_come_back_undefended_and_do_not_under_noise() -> None:
    here = scene(Unprotected())
    secret = Knowledge(SIZE, None, here.knowledge.images, here.knowledge.embeddings)
    found = ATTACK(here.observed, secret, stream(0))  # without the bottom model
    assert found.mismatch is None and float(found.images.abs().max()) <= 1
    assert nearest_truth(found.images, here.truth) > 0.8
    grey = likeness(torch.zeros_like(here.truth), here.truth)
    assert likeness(found.images, here.truth) > grey + 0.2
    noisy = scene(EmbeddingRelease(epsilon=1.0, n_releases=1))
    lost = ATTACK(noisy.observed, noisy.knowledge, stream(0))
    assert nearest_truth(lost.images, noisy.truth) < 0.5


def test_the_same_stream_gives_the_same_pictures() -> None:
    here, attack = scene(Unprotected(), n_shadow=20, n=2), Decoder(width=8, epochs=1)
    first, second = (attack(here.observed, here.knowledge, stream(0)).images for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("size", "side"), [(16, 4), (32, 4), (48, 6), (56, 7), (112, 7), (64, 4)])
def test_the_network_ends_at_the_pictures_size(size: int, side: int) -> None:
    network = decoder(5, size, 16)
    assert network[0].out_features == 16 * side**2
    assert network(torch.zeros(2, 5)).shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [4, 7, 18, 44])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        decoder(5, size, 16)


def test_shadow_pictures_and_dimensions_are_checked() -> None:
    here = scene(Unprotected(), n_shadow=1, n=2)
    with pytest.raises(ValueError, match="decoder needs two"):
        ATTACK(here.observed, here.knowledge, stream(0))
    with pytest.raises(ValueError, match="observed embeddings"):
        ATTACK(here.observed[:, :3], scene(Unprotected(), n=2).knowledge, stream(0))
