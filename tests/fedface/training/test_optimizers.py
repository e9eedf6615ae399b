from math import cos, pi

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedface.training.optimizers import SGD


def test_the_rate_is_constant_by_default():
    assert {SGD(learning_rate=0.2).rate(r, 10) for r in range(1, 11)} == {0.2}


@pytest.mark.parametrize(("n_rounds", "share"), [(2, 0.1), (7, 0.01), (50, 0.5)])
def test_the_rate_follows_half_a_cosine(n_rounds, share):
    sgd = SGD(learning_rate=0.2, final_share=share)
    for server_round in range(1, n_rounds + 1):
        angle = pi * (server_round - 1) / (n_rounds - 1)
        expected = 0.2 * share + 0.2 * (1 - share) * (1 + cos(angle)) / 2
        assert sgd.rate(server_round, n_rounds) == pytest.approx(expected, rel=1e-12)


def test_the_rate_goes_from_the_first_to_its_final_share():
    sgd = SGD(learning_rate=0.2, final_share=0.1)
    rates = [sgd.rate(r, 9) for r in range(1, 10)]
    assert rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(0.02)
    assert rates[4] == pytest.approx(0.11)
    assert rates == sorted(rates, reverse=True)


def test_a_run_of_one_round_uses_the_first_rate():
    assert SGD(learning_rate=0.2, final_share=0.1).rate(1, 1) == pytest.approx(0.2)


def test_the_optimizer_holds_what_is_trained_in_all_modules():
    backbone, head = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 4)
    backbone[0].weight.requires_grad_(False)
    sgd = SGD(learning_rate=0.2, momentum=0.5, weight_decay=0.01, final_share=0.5)
    optimizer = sgd.build((backbone, head), 3, 3)
    (group,) = optimizer.param_groups
    expected = [backbone[0].bias, *backbone[1].parameters(), *head.parameters()]
    assert [id(p) for p in group["params"]] == [id(p) for p in expected]
    assert group["lr"] == pytest.approx(0.1)
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.01)


def test_two_steps_are_momentum_sgd_with_weight_decay():
    """w <- w - lr * v with v <- 0.9 v + (g + 0.1 w), by hand."""
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(2.0)
    optimizer = SGD(learning_rate=0.5, momentum=0.9, weight_decay=0.1).build((module,), 1, 1)
    weight, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0):
        module.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.1 * weight
        weight -= 0.5 * velocity
    assert module.weight.item() == pytest.approx(weight)


@pytest.mark.parametrize(
    "field",
    [
        {"learning_rate": 0},
        {"learning_rate": -1},
        {"momentum": 1},
        {"momentum": -0.1},
        {"weight_decay": -1e-9},
        {"final_share": 0},
        {"final_share": 1.1},
        {"lr": 0.1},
    ],
)
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValidationError):
        SGD(**field)
