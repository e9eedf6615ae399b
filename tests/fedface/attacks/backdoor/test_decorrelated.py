import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from fedface.aggregation.fragments import cut
from fedface.aggregation.memory import unit_residuals
from fedface.aggregation.shared_direction import sharing
from fedface.attacks.backdoor.decorrelated import Decorrelated, at_length, largest_share
from fedface.attacks.backdoor.pieces import pieces
from tests.fedface.attacks.backdoor.fake_judge import pair
from tests.fedface.attacks.backdoor.headquarters import coalition_of
from tests.fedface.attacks.sites import global_model

SETTINGS = {"malicious_share": 0.2, "trigger": {"name": "patch"}, "goal": {"name": "key"}}


def sent(poisoned, honest, server_round: int = 1, **fields: object):
    attack = Decorrelated.model_validate({**SETTINGS, **fields})
    coalition = coalition_of(poisoned, global_model(), {"honest": honest}, server_round)
    return attack.collude(coalition)


def shared_in_cohort(updates) -> float:
    """What ARIBA finds: rho of the first two of a cohort with ten honest clients."""
    rng = torch.Generator().manual_seed(9)
    common = torch.randn(updates.shape[1], generator=torch.Generator().manual_seed(0))
    crowd = common + torch.randn(10, updates.shape[1], generator=rng)
    units = functional.normalize(unit_residuals(torch.cat((updates, crowd))), dim=1).double()
    return float(sharing(units @ units.T).shares[0, 1])


def test_the_expected_share_is_what_aribas_detector_finds():
    poisoned, honest = pair(2)
    ones = torch.ones(2, dtype=torch.float64)
    start = at_length(honest, ones)
    expected = largest_share(start, at_length(poisoned, ones) - start)
    assert expected == pytest.approx(shared_in_cohort(poisoned), abs=0.05)
    assert expected > 0.2 > 0.1 > abs(shared_in_cohort(honest))


@pytest.mark.parametrize("target", [0.02, 0.05, 0.15])
def test_noise_leaves_about_the_target_to_share(target):
    poisoned, honest = pair(2)
    found = shared_in_cohort(sent(poisoned, honest, target_share=target))
    assert found == pytest.approx(target, abs=0.04)
    assert found < 0.6 * shared_in_cohort(poisoned)


@pytest.mark.parametrize("mode", ["noise", "turns"])
@pytest.mark.parametrize("n", [1, 3])
def test_updates_are_as_long_as_the_honest_ones(mode, n):
    poisoned, honest = pair(n)
    honest = honest * torch.arange(1.0, n + 1)[:, None]
    assert_close(sent(poisoned, honest, mode=mode).norm(dim=1), honest.norm(dim=1))


def test_noise_looks_like_what_it_replaces_in_every_piece_and_is_new_every_round():
    poisoned, honest = pair(2)
    found, again = (sent(poisoned, honest, server_round=r) for r in (1, 2))
    assert torch.equal(found, sent(poisoned, honest))
    assert not torch.equal(found, again)
    plain = at_length(poisoned, honest.double().norm(dim=1))
    for layer in pieces(global_model().layout):
        if layer.n_fragments > 1:
            lengths = [float(cut(u, layer).norm()) for u in (found, plain)]
            assert lengths[0] == pytest.approx(lengths[1], rel=0.15)


def test_a_backdoor_that_shares_little_is_sent_as_it_is_but_for_its_length():
    poisoned, honest = pair(2)
    found = sent(poisoned, honest, target_share=1.0)
    assert_close(functional.normalize(found, dim=1), functional.normalize(poisoned, dim=1))
    single = sent(poisoned[:1], honest[:1])
    assert_close(functional.normalize(single, dim=1), functional.normalize(poisoned[:1], dim=1))


@pytest.mark.parametrize("turn_rounds", [1, 3])
def test_one_colluder_attacks_at_a_time_and_each_has_its_turn(turn_rounds):
    poisoned, honest = pair(3)
    turns = []
    for server_round in range(1, 3 * turn_rounds + 1):
        found = sent(poisoned, honest, server_round, mode="turns", turn_rounds=turn_rounds)
        pushing = [i for i in range(3) if not torch.equal(found[i], honest[i])]
        assert len(pushing) == 1
        i = pushing[0]
        assert functional.cosine_similarity(found[i], poisoned[i], dim=0) > 0.9999
        turns.append(i)
    assert turns == [i for i in range(3) for _ in range(turn_rounds)]


def test_a_turn_can_be_scaled_and_shows_by_its_length():
    poisoned, honest = pair(3)
    plain, scaled = (sent(poisoned, honest, 1, mode="turns", turn_scale=s) for s in (1.0, 4.0))
    assert_close(scaled - honest, 4 * (plain - honest))
    assert scaled[0].norm() > 1.5 * honest[0].norm()


def test_updates_of_zero_stay_zero():
    zeros = torch.zeros_like(pair(2)[0])
    assert sent(zeros, zeros).eq(0).all()
