"""Noise on whole updates: its scale, its bound, and the divisor that tells nothing."""

import pytest
import torch
from torch import Tensor

from fedface.aggregation.cohort import Cohort
from fedface.parameters import Layout
from fedface.privacy.noise_check import check_noise
from fedface.privacy.site_level import PrivateMean, private_update
from fedface.privacy.units import SitePrivacy
from fedface.random import stream

DIM = 3000


def cohort(updates: Tensor, server_round: int = 1) -> Cohort:
    n = len(updates)
    layout = Layout.from_shapes({"w": (updates.shape[1],)})
    ones = torch.ones(n, dtype=torch.int64)
    return Cohort(updates, layout, ones, ones, tuple(range(n)), server_round)


def rule(noise: float, n_cohort: int = 5, **fields: object) -> PrivateMean:
    privacy = SitePrivacy.model_validate(
        {"noise_multiplier": noise, "clip": 0.5, "noise_at": "server", **fields}
    )
    return PrivateMean(n_cohort=n_cohort, privacy=privacy, noise_multiplier=noise)


def is_noise(residuals: Tensor, sigma: float) -> bool:
    check = check_noise(residuals, sigma, 0.999)
    return check.low <= sigma <= check.high and check.shape_p_value > 1e-3


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (1.5, False)])
def test_both_noises_have_the_promised_scale(factor: float, accepted: bool) -> None:
    update = 10 * torch.randn(DIM, generator=stream(0, "u"))
    residual = private_update(update, 0.5, 2.0, stream(1, "n")) - private_update(
        update, 0.5, 0.0, stream(1, "n")
    )
    assert is_noise(residual, factor * 1.0) is accepted
    updates = cohort(torch.randn(5, DIM, generator=stream(0, "u")))
    mean = rule(2.0)(updates, {})[0].update - rule(0.0)(updates, {})[0].update
    assert is_noise(mean, factor * 2.0 * 0.5 / 5) is accepted


def test_a_site_moves_the_mean_by_the_clip_norm_over_the_public_size_at_most() -> None:
    updates = 100 * torch.randn(5, DIM, generator=stream(0, "u"))
    every, without = (rule(0.0)(cohort(u), {})[0].update for u in (updates, updates[:-1]))
    assert 0.99 * 0.5 / 5 < float((every - without).norm()) <= 0.5 / 5


def test_rounds_have_noise_of_their_own_and_a_repeated_round_the_same() -> None:
    updates = torch.zeros(5, DIM)
    one, again, two = (rule(1.0)(cohort(updates, r), {})[0].update for r in (1, 1, 2))
    assert torch.equal(one, again)
    assert is_noise((one - two) / 2**0.5, 0.1)
    secret = rule(1.0, randomness="secret")
    first, second = (secret(cohort(updates), {})[0].update for _ in range(2))
    assert not torch.equal(first, second)


def test_short_updates_are_not_lengthened_and_everyone_is_trusted_alike() -> None:
    updates = 1e-4 * torch.randn(4, DIM, generator=stream(0, "u"))
    aggregation, state = rule(0.0, 4)(cohort(updates), {})
    torch.testing.assert_close(aggregation.update, updates.mean(0))
    assert aggregation.trust.tolist() == [0.25] * 4
    assert state == {}
