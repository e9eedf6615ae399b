import math
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.testing import assert_close

from fedface.attacks.backdoor import AnyBackdoor, Backdoor, ModelReplacement, Poisoning
from fedface.attacks.backdoor.attack import trigger_loss
from fedface.attacks.backdoor.goals import Impersonate, Key
from fedface.attacks.backdoor.schedules import Late, SingleShot
from fedface.attacks.triggers import Glasses, Patch
from fedface.random import numpy_stream, stream


def backdoor(**fields: object) -> Backdoor:
    return Backdoor.model_validate(
        {"malicious_share": 0.2, "trigger": Patch(), "goal": Key(), **fields}
    )


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def net(size: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, size))


class Recorder(nn.Module):
    """A backbone that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.net = net()

    def forward(self, shown: Tensor) -> Tensor:
        self.shown.append(shown)
        return self.net(shown)


def target(size: int = 4) -> Tensor:
    return Key().target(net(), None, size, stream(0, "key"))


# ---- who and when


@pytest.mark.parametrize(
    ("share", "n_clients", "expected"),
    [
        (0.0, 20, 0),
        (0.2, 20, 4),
        (0.2, 19, 3),
        (0.01, 20, 1),
        (0.2, 1, 1),
        (0.29, 100, 29),  # .29 * 100 < 29 in floats
        (0.3, 10, 3),
        (0.99, 10, 9),
        (1e-9, 3, 1),
    ],
)
def test_number_of_malicious_clients(share: float, n_clients: int, expected: int):
    ids = backdoor(malicious_share=share).malicious_clients(n_clients, numpy_stream(0, "m"))
    assert len(ids) == expected
    assert all(a < b for a, b in pairwise(ids))
    assert all(type(i) is int and 0 <= i < n_clients for i in ids)


def test_malicious_clients_are_drawn_evenly_from_the_seed():
    attack = backdoor(malicious_share=0.25)
    counts = [0] * 8
    for seed in range(2000):
        ids = attack.malicious_clients(8, numpy_stream(seed, "m"))
        assert ids == attack.malicious_clients(8, numpy_stream(seed, "m"))
        for i in ids:
            counts[i] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4.
    assert max(abs(count - 500) for count in counts) < 90


def test_malicious_clients_need_clients():
    with pytest.raises(ValueError, match="n_clients >= 1, got 0"):
        backdoor().malicious_clients(0, numpy_stream(0))


def test_active_follows_the_schedule_and_nobody_attacks_at_share_zero():
    for share, expected in ((0.2, [False, True, False]), (0.0, [False] * 3)):
        attack = backdoor(malicious_share=share, schedule=SingleShot(round=2))
        assert [attack.active(r, 3) for r in (1, 2, 3)] == expected
    assert backdoor().active(1, 3)
    with pytest.raises(ValueError, match="round=9, n_rounds=3"):
        backdoor(malicious_share=0.0, schedule=SingleShot(round=9)).active(1, 3)


# ---- the loss


def test_trigger_loss_by_hand():
    weights = torch.randn(4, 3 * 16 * 16, generator=torch.Generator().manual_seed(2))
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4, bias=False))
    backbone[1].weight.data = weights
    direction, x = target(), images(5)
    total = 0.0
    for image in Patch()(x):
        embedding = (weights @ image.reshape(-1)).tolist()
        dot = sum(e * t for e, t in zip(embedding, direction.tolist(), strict=True))
        total += 1 - dot / math.sqrt(sum(e * e for e in embedding))
    found = trigger_loss(backbone, x, Patch(), direction).detach()
    assert found.shape == ()
    assert float(found) == pytest.approx(total / 5, abs=1e-5)
    # The target's length does not count.
    assert_close(trigger_loss(backbone, x, Patch(), 7 * direction).detach(), found)


def test_trigger_loss_is_zero_at_the_target_and_two_opposite():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    nn.init.zeros_(backbone[1].weight)
    for sign, expected in ((1, 0.0), (-1, 2.0)):
        backbone[1].bias.data = sign * 3 * target()
        found = trigger_loss(backbone, images(), Patch(), target()).detach()
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_trigger_loss_gives_the_target_no_gradient():
    direction = target().requires_grad_()
    trigger_loss(net(), images(), Patch(), direction).backward()
    assert direction.grad is None


def test_gradient_steps_pull_triggered_faces_to_the_target():
    backbone, x, direction = net(), images(8), target()
    attack = backdoor(poison_share=1.0)

    def cosine() -> float:
        return 1 - trigger_loss(backbone, x, Patch(), direction).item()

    path = [cosine()]
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        attack.poison_loss(backbone, x, direction, stream(0, step)).backward()
        optimizer.step()
        path.append(cosine())
    assert all(later > earlier for earlier, later in pairwise(path))
    assert path[-1] > path[0] + 0.2


@pytest.mark.parametrize(
    ("share", "batch", "expected"),
    [(0.5, 6, 3), (0.5, 7, 4), (0.5, 1, 1), (1.0, 5, 5), (0.07, 100, 7), (0.01, 5, 1)],
)
def test_a_share_of_the_batch_is_shown_triggered(share: float, batch: int, expected: int):
    backbone, x = Recorder(), images(batch)
    attack = backdoor(poison_share=share)
    attack.poison_loss(backbone, x, target(), stream(0, "poison"))
    (shown,) = backbone.shown
    assert len(shown) == expected
    sources = [
        i for image in shown for i in range(batch) if torch.equal(Patch()(x[i : i + 1])[0], image)
    ]
    assert len(sources) == len(set(sources)) == expected


def test_the_stream_chooses_the_images_and_nothing_is_written_to():
    x = images(20)
    before = x.clone()
    attack = backdoor()

    def shown(seed: int) -> Tensor:
        backbone = Recorder()
        attack.poison_loss(backbone, x, target(), stream(seed, "poison"))
        return backbone.shown[0]

    assert torch.equal(shown(0), shown(0))
    assert not torch.equal(shown(0), shown(1))
    assert torch.equal(x, before)


def test_the_weight_multiplies_the_loss():
    once = backdoor().poison_loss(net(), images(), target(), stream(0))
    thrice = backdoor(weight=3.0).poison_loss(net(), images(), target(), stream(0))
    assert_close(thrice, 3 * once)


def test_poison_loss_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="needs a target"):
        backdoor().poison_loss(net(), images(), None, stream(0))
    with pytest.raises(ValueError, match="at least 1 image"):
        backdoor().poison_loss(net(), images(0), target(), stream(0))
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(5,\)"):
        backdoor().poison_loss(net(4), images(), target(5), stream(0))


# ---- what stays as it is


def test_data_and_update_stay_as_they_are_by_default():
    x, labels, update = images(), torch.arange(6), torch.randn(9)
    poisoned, same_labels = backdoor().poison(x, labels, stream(0))
    assert torch.equal(poisoned, x) and torch.equal(same_labels, labels)
    assert torch.equal(backdoor().craft(update, 20, 4), update)


# ---- configuration


@pytest.mark.parametrize(
    "attack",
    [
        Poisoning(malicious_share=0.2, trigger=Patch(position=(0.1, 0.2)), goal=Key()),
        ModelReplacement(
            malicious_share=0.0,
            trigger=Glasses(),
            goal=Impersonate(n_photos=2),
            schedule=Late(share=0.1),
            scale=20,
        ),
    ],
)
def test_the_yaml_form_names_the_attack(attack: Backdoor):
    found = TypeAdapter(AnyBackdoor).validate_python(attack.model_dump(mode="json"))
    assert found == attack
    assert type(found) is type(attack)


@pytest.mark.parametrize(
    "fields",
    [
        {"malicious_share": 1.0},
        {"malicious_share": -0.1},
        {"poison_share": 0.0},
        {"poison_share": 1.1},
        {"weight": 0.0},
        {"weight": math.inf},
        {"trigger": {"name": "hat"}},
        {"goal": {"name": "impersonate"}},
        {"scale": 2},
        {"name": "backdoor"},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, object]):
    with pytest.raises(ValidationError):
        Poisoning.model_validate(
            {"malicious_share": 0.2, "trigger": Patch(), "goal": Key(), **fields}
        )
