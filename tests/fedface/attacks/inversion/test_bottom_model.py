import pytest
import torch

from fedface.attacks.inversion import Knowledge, Optimisation
from fedface.attacks.inversion.bottom_model import KnownBottom, ShadowBottom
from fedface.attacks.inversion.image_prior import Eigenfaces
from fedface.backbones import SmallConv
from fedface.privacy import Unprotected
from fedface.random import stream
from tests.fedface.attacks.inversion.small_world import SIZE, nearest_truth, scene

QUICK = ShadowBottom(
    backbone=SmallConv(widths=(8, 16, 32, 256), embedding_size=32), epochs=12, learning_rate=2e-3
)


def test_a_known_bottom_model_is_the_true_one() -> None:
    knowledge = scene(Unprotected()).knowledge
    assert KnownBottom().encoder(knowledge, stream(0)) is knowledge.encoder
    secret = Knowledge(SIZE, None, knowledge.images, knowledge.embeddings)
    with pytest.raises(ValueError, match=r"Knowledge\.encoder"):
        KnownBottom().encoder(secret, stream(0))


def test_a_shadow_learns_the_embeddings_and_is_frozen() -> None:
    here = scene(Unprotected(), n_shadow=600)
    shadow = QUICK.encoder(here.knowledge, stream(0))
    error = (shadow(here.truth) - here.observed).square().mean()
    assert error < 0.2 * here.observed.var(0).mean()  # of pictures that it never saw
    inverted = Knowledge(SIZE, shadow, here.knowledge.images, here.knowledge.embeddings)
    attack = Optimisation(steps=60, prior=Eigenfaces(n_components=16, weight=0.01))
    found = attack(here.observed, inverted, stream(0))
    assert nearest_truth(found.images, here.truth) > 0.3  # 1 / 12 by chance
    assert not any(p.requires_grad for p in shadow.parameters())


def test_the_same_stream_gives_the_same_shadow() -> None:
    here = scene(Unprotected(), n_shadow=20)
    settings = QUICK.model_copy(update={"epochs": 1})
    secret = Knowledge(SIZE, None, here.knowledge.images, here.knowledge.embeddings)
    inverted = Optimisation(steps=2, bottom=settings)(here.observed, secret, stream(0))
    assert inverted.images.shape == here.truth.shape  # the true model is not needed
    first, second = (settings.encoder(here.knowledge, stream(0)) for _ in range(2))
    assert torch.equal(first(here.truth), second(here.truth))


def test_a_shadow_needs_pictures() -> None:
    empty = Knowledge(SIZE, None, torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="shadow bottom model needs two"):
        QUICK.encoder(empty, stream(0))
