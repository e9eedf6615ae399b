import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from fedface.attacks.backdoor.adaptive import FRACTIONS, Adaptive, largest_accepted
from tests.fedface.attacks.backdoor.fake_judge import judged, pair

SETTINGS = {"malicious_share": 0.2, "trigger": {"name": "patch"}, "goal": {"name": "key"}}


def attack(**fields: object) -> Adaptive:
    return Adaptive.model_validate({**SETTINGS, **fields})


def lambda_of(sent, poisoned, honest) -> float:
    """The lambda behind what was sent; it is the same for all and in every weight."""
    factors = (sent - honest)[poisoned != honest] / (poisoned - honest)[poisoned != honest]
    assert float(factors.std()) < 1e-2
    return float(factors.median())


@pytest.mark.parametrize("bound", [0.0, 0.3, 1.7, 4.9])
def test_bisection_ends_just_inside_the_bound(bound):
    asked = []

    def accepts(factor: float) -> bool:
        asked.append(factor)
        return factor <= bound

    found = largest_accepted(accepts, 5.0, 8)
    assert found <= bound < found + 5 / 64 + 1e-9
    assert len(asked) == 8 and asked[:2] == [5.0, 0.0]


def test_what_is_accepted_at_once_is_asked_once():
    asked = []
    assert largest_accepted(lambda f: asked.append(f) is None, 5.0, 8) == 5.0
    assert asked == [5.0]


@pytest.mark.parametrize("bound", [0.4, 2.2])
def test_all_colluders_stay_just_inside_what_the_rule_accepts(bound):
    poisoned, honest = pair(3)
    limits = bound * (poisoned - honest).norm(dim=1)

    def trust_of(crafted) -> list[float]:
        return [1.0, 1.0, float((crafted - honest).norm(dim=1)[2] <= limits[2])]

    coalition, asked = judged(poisoned, honest, trust_of)
    sent = attack().collude(coalition)
    found = lambda_of(sent, poisoned, honest)
    assert found <= bound < found + 10 / 3 / 64 + 1e-4
    assert trust_of(sent)[2] == 1.0
    assert len(asked) == 8 + len(FRACTIONS)


def test_where_nearly_refused_updates_are_trusted_less_the_most_influential_lambda_is_sent():
    poisoned, honest = pair(2)
    limits = 2.0 * (poisoned - honest).norm(dim=1)

    def trust_of(crafted) -> list[float]:  # all at a standstill, nothing at lambda 2
        nearness = 1 - ((crafted - honest).norm(dim=1) / limits) ** 2
        return nearness.clamp_min(0).tolist()

    coalition, _ = judged(poisoned, honest, trust_of)
    found = lambda_of(attack().collude(coalition), poisoned, honest)
    # lambda (1 - lambda^2 / 4) is largest at 2 / sqrt 3 = 1.15; of 0.55, 0.7, 0.85, 1 times 2:
    assert found == pytest.approx(1.1, abs=0.06)


def test_a_rule_that_accepts_everything_gets_the_replacement_that_fills_a_mean():
    poisoned, honest = pair(2)
    coalition, asked = judged(poisoned, honest, lambda crafted: [0.1, 0.1])
    assert_close(attack().collude(coalition), honest + 5 * (poisoned - honest))
    assert_close(attack(lambda_max=0.5).collude(coalition), honest + 0.5 * (poisoned - honest))
    assert len(asked) == 2


def test_where_even_honest_updates_are_refused_they_are_sent():
    poisoned, honest = pair(2)
    coalition, asked = judged(poisoned, honest, lambda crafted: [1.0, 0.0])
    assert torch.equal(attack().collude(coalition), honest)
    assert len(asked) == 2 and torch.equal(asked[1], honest)


def test_a_rule_that_refuses_the_cohort_has_not_accepted():
    poisoned, honest = pair(2)

    def trust_of(crafted) -> list[float]:
        if not torch.equal(crafted, honest):
            raise ValueError("no such cohort")
        return [1.0, 1.0]

    coalition, _ = judged(poisoned, honest, trust_of)
    assert torch.equal(attack().collude(coalition), honest)


@pytest.mark.parametrize("fields", [{"lambda_max": 0.0}, {"n_judgements": 1}])
def test_impossible_fields_are_refused(fields):
    with pytest.raises(ValidationError):
        attack(**fields)
