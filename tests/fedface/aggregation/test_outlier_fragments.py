import pytest
import torch
from scipy.stats import chi2

from fedface.aggregation import blocks, points
from fedface.aggregation.outlier_fragments import Detector
from fedface.aggregation.points import standardise
from fedface.random import numpy_stream

DETECTOR = Detector(n_components=8, quantile=0.99, support_fraction=0.75)


def rng():
    return numpy_stream(0, "test")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("column", [0, 1, 2999])
def test_nobody_hides_in_a_coordinate_that_is_not_measured(column):
    """All others agree: the only one that moves is far out, by whatever coordinate it moves."""
    fragments = normal(20, 16, 3000)
    fragments[:, 5] = 0.0
    fragments[3, 5, column] = 1e-6
    flags = DETECTOR.flags(fragments, rng())
    assert bool(flags[3, 5]) and not bool(flags[:3, 5].any())


def test_one_enormous_number_is_clipped_wherever_it_stands():
    """Where the scale is not measured, too, and whether or not the caller knows the largest."""
    fragments = normal(20, 16, 3000)
    for column in (0, 1, 2999):
        spoilt = fragments.clone()
        spoilt[3, 5, column] = 1e38
        flags = DETECTOR.flags(spoilt, rng())
        assert bool(flags[3, 5]) and int(flags.sum()) < 0.1 * flags.numel()


@pytest.mark.parametrize(("n", "d"), [(10, 2), (10, 9), (20, 9), (10, 27)])
def test_the_trap_classical_distances_per_position_saturate(n, d):
    """Section 1.4 of methods-core: MD^2 <= (n - 1)^2 / n, here below chi2 whatever the shift."""
    fragments = normal(n, 64, d)
    fragments[0, :8] += 50
    position = fragments[:, 0].double()
    centred = position - position.mean(dim=0)
    classical = (centred @ torch.linalg.pinv(torch.cov(position.T)) * centred).sum(dim=1)
    bound = (n - 1) ** 2 / n
    assert float(classical.max()) <= bound + 1e-6
    assert bound < chi2.ppf(0.99, d)
    if d < n - 1:
        assert float(classical[0]) > bound - 0.1
    else:
        torch.testing.assert_close(classical, torch.full_like(classical, bound))
    flags = DETECTOR.flags(fragments, rng())
    assert flags is not None and bool(flags[0, :8].all())
    assert float(flags[1:].double().mean()) < 0.08  # few values per MAD: a mixture, long tails


def test_clean_fragments_are_flagged_at_about_the_nominal_rate():
    flags = DETECTOR.flags(normal(20, 128, 72), rng())
    assert 0.004 < float(flags.double().mean()) < 0.02


def test_what_cannot_be_judged_is_none():
    assert DETECTOR.flags(normal(4, 1, 9), rng()) is None
    assert DETECTOR.flags(normal(5, 1, 9), rng()).shape == (5, 1)
    assert DETECTOR.flags(normal(20, 4, 1), rng()).shape == (20, 4)


def test_agreement_flags_nobody_and_one_deviant_alone():
    fragments = normal(1, 16, 9).repeat(8, 1, 1)
    assert not bool(DETECTOR.flags(fragments, rng()).any())
    fragments[2, 5] += 1
    flags = DETECTOR.flags(fragments, rng())
    assert flags.nonzero().tolist() == [[2, 5]]


def test_points_in_blocks_are_those_made_at_once(monkeypatch):
    fragments = normal(6, 40, 30) * torch.linspace(1, 9, 40)[:, None]
    whole = DETECTOR.flags(fragments, rng())
    expected = standardise(fragments)
    monkeypatch.setattr(blocks, "CELLS", 6 * 30 * 7)
    assert torch.equal(standardise(fragments), expected)
    assert torch.equal(DETECTOR.flags(fragments, rng()), whole)


def test_an_attack_on_few_positions_is_found_though_few_are_held(monkeypatch):
    monkeypatch.setattr(points, "HELD", 20 * 72 * 6)
    for seed in range(4):
        fragments = normal(20, 128, 72, seed=seed)
        fragments[[3, 7], :8] += 2.0 * normal(72, seed=50 + seed)
        flags = DETECTOR.flags(fragments, numpy_stream(seed, "test"))
        assert float(flags[[3, 7], :8].double().mean()) > 0.9
        flags[[3, 7], :8] = False
        assert float(flags.double().mean()) < 0.03


def test_permuting_clients_permutes_the_flags_of_a_layer_too_large_to_hold(monkeypatch):
    monkeypatch.setattr(points, "HELD", 10 * 36 * 5)
    fragments = normal(10, 48, 36)
    fragments[4] *= 2
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    one, other = DETECTOR.flags(fragments, rng()), DETECTOR.flags(fragments[order], rng())
    assert int((other != one[order]).sum()) <= 1
