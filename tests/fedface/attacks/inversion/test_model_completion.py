from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedface.attacks.inversion import ModelCompletion
from fedface.attacks.inversion.model_completion import mixed, semi_supervised_loss, sharpened
from fedface.backbones.initialisation import initialised
from fedface.random import stream

N_LABELS, DIM = 4, 8
QUICK = ModelCompletion(epochs=1, steps_per_epoch=120, averaging=0.9, learning_rate=1e-3)


def records(n: int):
    """What tells labels apart is a little of 40 numbers; the rest varies far more."""
    rng = stream(0, "records")
    labels = torch.arange(n) % N_LABELS
    means = 1.5 * torch.eye(N_LABELS)
    signal = means[labels] + 0.3 * torch.randn(n, N_LABELS, generator=rng)
    return torch.cat([signal, 2 * torch.randn(n, 36, generator=rng)], 1), labels


def network(seed: int) -> nn.Module:
    return initialised(lambda: nn.Sequential(nn.Linear(40, DIM)), stream(seed, "bottom"))


def trained() -> nn.Module:
    """What a federation leaves at a passive party: the label directions, and little else."""
    bottom = network(0)
    with torch.no_grad():
        bottom[0].weight.mul_(0.02)
        bottom[0].weight[:N_LABELS, :N_LABELS] += torch.eye(N_LABELS)
    return bottom


def accuracy(bottom: nn.Module, attack: ModelCompletion = QUICK) -> float:
    x, labels = records(200)
    known = torch.arange(2 * N_LABELS)
    logits = attack(bottom, DIM, x, known, labels[known], stream(0, "attack"))
    assert logits.shape == (200, N_LABELS)
    return float((logits.argmax(1) == labels)[len(known) :].float().mean())


def test_a_trained_bottom_model_gives_labels_away_and_an_untrained_one_does_not() -> None:
    leaked, few_labels_alone = accuracy(trained()), accuracy(network(0))
    assert leaked > 0.6
    assert few_labels_alone < 0.4
    head_alone = QUICK.model_copy(update={"freeze_bottom": True, "learning_rate": 5e-3})
    assert accuracy(trained(), head_alone) > 0.9
    assert accuracy(network(0), head_alone) < 0.4


def test_the_partys_own_model_stays_as_it_is() -> None:
    bottom, (x, labels) = trained().eval(), records(20)
    bottom.requires_grad_(False)
    before = deepcopy(bottom.state_dict())
    attack = ModelCompletion(epochs=1, steps_per_epoch=3)
    first = attack(bottom, DIM, x, torch.arange(4), labels[:4], stream(0))
    second = attack(bottom, DIM, x, torch.arange(4), labels[:4], stream(0))
    assert torch.equal(first, second)
    assert all(torch.equal(v, before[k]) for k, v in bottom.state_dict().items())
    assert not bottom.training and not any(p.requires_grad for p in bottom.parameters())


def test_the_average_follows_the_weights_and_nothing_else() -> None:
    """With an average that keeps 0.999 and one step, the logits are nearly those of the start."""
    x, labels = records(20)
    arguments = (trained(), DIM, x, torch.arange(4), labels[:4])
    one = ModelCompletion(epochs=1, steps_per_epoch=1, learning_rate=0.5)(*arguments, stream(0))
    quick = ModelCompletion(epochs=1, steps_per_epoch=1, learning_rate=0.5, averaging=0.0)
    moved = quick(*arguments, stream(0))
    still = ModelCompletion(epochs=1, steps_per_epoch=1, learning_rate=1e-12)
    start = still(*arguments, stream(0))
    assert (one - start).norm() < 0.05 * (moved - start).norm()


def test_records_without_a_known_label_take_part_in_the_training() -> None:
    x, labels = records(20)
    other = x.clone()
    other[4:] = x[4:].flip(0)[:, torch.arange(39, -1, -1)]
    attack = ModelCompletion(epochs=1, steps_per_epoch=20, averaging=0.5)
    first, second = (
        attack(trained(), DIM, images, torch.arange(4), labels[:4], stream(0))
        for images in (x, other)
    )
    assert not torch.allclose(first[:4], second[:4], atol=1e-3)


def test_all_records_may_be_known() -> None:
    x, labels = records(8)
    attack = ModelCompletion(epochs=1, steps_per_epoch=2)
    assert attack(trained(), DIM, x, torch.arange(8), labels, stream(0)).shape == (8, N_LABELS)


def test_sharpening_is_a_power_and_mixing_a_share() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    expected = torch.tensor([0.5, 0.3, 0.2]) ** 2
    assert torch.allclose(sharpened(p, 0.5)[0], expected / expected.sum())
    x, y = torch.arange(4.0)[:, None], torch.eye(4)
    mixed_x, mixed_y = mixed(x, y, 0.75, stream(0))
    assert torch.allclose(mixed_y.sum(1), torch.ones(4))
    assert torch.allclose(mixed_y.sum(0), torch.ones(4))  # every row is some row's partner once
    assert torch.allclose(mixed_x[:, 0], mixed_y @ torch.arange(4.0))


def test_the_loss_is_mixmatchs() -> None:
    logits = torch.randn(5, 3, generator=stream(0))
    targets = torch.softmax(torch.randn(5, 3, generator=stream(1)), 1)
    found = semi_supervised_loss(logits, targets, 2, 7.0)
    known = functional.cross_entropy(logits[:2], targets[:2])
    others = [
        (float(logits[i].softmax(0)[c]) - float(targets[i, c])) ** 2
        for i in (2, 3, 4)
        for c in range(3)
    ]
    assert float(found) == pytest.approx(float(known) + 7 * sum(others) / 9, rel=1e-5)


def test_known_records_are_checked() -> None:
    x, _ = records(8)
    with pytest.raises(ValueError, match="known record"):
        QUICK(trained(), DIM, x, torch.tensor([0, 1]), torch.tensor([0, 2]), stream(0))
