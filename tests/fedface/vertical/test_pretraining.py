import pytest
import torch

from fedface.backbones import SmallConv
from fedface.privacy import EmbeddingRelease, Unprotected
from fedface.random import stream
from fedface.training.optimizers import SGD
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.distribution import Centre, SupervisedContrastive
from fedface.vertical.passive import PassiveParty, PassiveSettings
from fedface.vertical.pretraining import Pretraining, pretrain_backbone, pretrain_party
from fedface.vertical.scale import Learnable, NoScale

CONV = SmallConv(widths=(8, 16, 16, 16), embedding_size=8)
QUICK = Pretraining(epochs=6, batch_size=6, optimizer=SGD(learning_rate=0.05))


def public(n_each: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Three people: one bright above, one at the left, one in the middle."""
    labels = torch.arange(3).repeat_interleave(n_each)
    patterns = -0.6 * torch.ones(3, 1, 32, 32)
    patterns[0, :, :16] = patterns[1, :, :, :16] = patterns[2, :, 8:24, 8:24] = 0.6
    images = patterns[labels].expand(-1, 3, -1, -1)
    return images + 0.2 * torch.randn(images.shape, generator=stream(0, "public")), labels


def party(release=None, scale=None) -> PassiveParty:
    release = release or EmbeddingRelease(sigma=0.3, n_releases=1)
    settings = PassiveSettings(
        backbone=CONV, release=release, **({"scale": scale} if scale else {})
    )
    return settings.build(32, 5, stream(0, "party"))


def trained(own: PassiveParty, settings: Pretraining = QUICK) -> float:
    return pretrain_party(own, *public(), settings, Augmentation(shift=1), stream(0, "train"))


@pytest.mark.parametrize("through_noise", [True, False])
def test_it_learns_and_costs_no_release(through_noise: bool) -> None:
    own = party()
    first = trained(own, QUICK.model_copy(update={"epochs": 1, "through_noise": through_noise}))
    own = party()
    last = trained(own, QUICK.model_copy(update={"through_noise": through_noise}))
    assert last < 0.7 * first
    assert own.ledger is not None and not own.ledger.counts.any()
    assert own.tensors()["inference.is_released"].any().item() is False


def test_public_people_come_apart_on_the_sphere() -> None:
    def spread(own: PassiveParty) -> float:
        images, labels = public()
        with torch.no_grad():
            u = torch.nn.functional.normalize(own.bottom(images))
        means = torch.stack([u[labels == i].mean(0) for i in range(3)])
        return float((u - means[labels]).square().sum() / (u - u.mean(0)).square().sum())

    fresh, own = party(), party()
    trained(own)
    assert spread(own) < 0.5 * spread(fresh)


def test_a_distribution_loss_and_a_learnable_scale_take_part() -> None:
    plain, shaped = party(), party()
    trained(plain)
    trained(shaped, QUICK.model_copy(update={"distribution": Centre()}))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(plain.bottom.parameters(), shaped.bottom.parameters(), strict=True)
    )
    own = party(scale=Learnable(initial=0.01))
    before = own.tensors()["model.scale.log_scale"]
    trained(own, QUICK.model_copy(update={"distribution": SupervisedContrastive()}))
    assert not torch.equal(own.tensors()["model.scale.log_scale"], before)


def test_the_same_draws_give_the_same_model() -> None:
    first, second = party(), party()
    trained(first)
    trained(second)
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def test_without_protection_it_trains_on_raw_embeddings() -> None:
    own = party(Unprotected(), NoScale())
    assert trained(own) < 0.7


def test_an_own_backbone_learns() -> None:
    def last(epochs: int) -> float:
        backbone = CONV.build(32, stream(0, "own"))
        settings = QUICK.model_copy(update={"epochs": epochs})
        return pretrain_backbone(
            backbone, 8, *public(), settings, Augmentation(), stream(0, "train")
        )

    assert last(6) < 0.7 * last(1)


def test_nothing_to_learn_from_and_a_rate_too_large() -> None:
    images, labels = public()
    with pytest.raises(ValueError, match="pretraining needs public pictures"):
        pretrain_party(party(), images[:0], labels[:0], QUICK, Augmentation(), stream(0))
    wild = QUICK.model_copy(update={"optimizer": SGD(learning_rate=1e12), "through_noise": False})
    with pytest.raises(ValueError, match=r"finite"):
        pretrain_party(
            party(Unprotected(), NoScale()), images, labels, wild, Augmentation(), stream(0)
        )
