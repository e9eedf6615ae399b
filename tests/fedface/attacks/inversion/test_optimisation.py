import pytest
import torch

from fedface.attacks.inversion import Knowledge, Optimisation
from fedface.attacks.inversion.image_prior import Eigenfaces, Smooth
from fedface.privacy import EmbeddingRelease, Unprotected
from fedface.random import stream
from tests.fedface.attacks.inversion.small_world import (
    SIZE,
    bottom_model,
    likeness,
    nearest_truth,
    scene,
)


@pytest.mark.parametrize("prior", [Smooth(weight=0.1), Eigenfaces(weight=0.01)])
def test_pictures_come_back_undefended_and_do_not_under_noise(prior) -> None:
    attack = Optimisation(steps=150, prior=prior)
    clear = scene(Unprotected())
    found = attack(clear.observed, clear.knowledge, stream(0))
    grey = likeness(torch.zeros_like(clear.truth), clear.truth)
    assert nearest_truth(found.images, clear.truth) > 0.9
    assert likeness(found.images, clear.truth) > grey + 0.3
    assert float(found.images.abs().max()) <= 1
    start = bottom_model()(torch.zeros_like(clear.truth)) - clear.observed
    assert found.mismatch is not None and found.mismatch.mean() < 0.1 * start.square().sum(1).mean()

    noisy = scene(EmbeddingRelease(epsilon=1.0, n_releases=1))
    lost = attack(noisy.observed, noisy.knowledge, stream(0))
    assert nearest_truth(lost.images, noisy.truth) < 0.5
    assert likeness(lost.images, noisy.truth) < likeness(found.images, clear.truth) - 0.2


def test_pictures_do_not_mix_and_the_embeddings_scale_does_not_matter() -> None:
    here = scene(Unprotected(), n=4)
    attack = Optimisation(steps=20)
    whole = attack(here.observed, here.knowledge, stream(0)).images
    pieces = Optimisation(steps=20, batch_size=1)(here.observed, here.knowledge, stream(0)).images
    assert torch.allclose(whole, pieces, atol=1e-4)
    bottom = bottom_model()
    louder = Knowledge(
        SIZE, lambda x: 100 * bottom(x), here.knowledge.images, 100 * here.knowledge.embeddings
    )
    scaled = attack(100 * here.observed, louder, stream(0)).images
    assert torch.allclose(whole, scaled, atol=1e-3)


def test_the_bottom_model_stays_as_it_is() -> None:
    here = scene(Unprotected(), n=2)
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 24))
    knowledge = Knowledge(SIZE, layer, here.knowledge.images, here.knowledge.embeddings)
    Optimisation(steps=2)(here.observed, knowledge, stream(0))
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())


def test_without_knowledge_it_says_so() -> None:
    here = scene(Unprotected(), n=2)
    secret = Knowledge(SIZE, None, torch.zeros(0, 3, SIZE, SIZE), torch.zeros(0, 24))
    with pytest.raises(ValueError, match="known bottom model"):
        Optimisation()(here.observed, secret, stream(0))
    known = Knowledge(SIZE, here.knowledge.encoder, secret.images, secret.embeddings)
    with pytest.raises(ValueError, match="eigenface prior"):
        Optimisation(prior=Eigenfaces())(here.observed, known, stream(0))
