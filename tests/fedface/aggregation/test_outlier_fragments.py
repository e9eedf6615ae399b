import statistics

import pytest
import torch
from scipy.stats import chi2

from fedface.aggregation import blocks, outlier_fragments
from fedface.aggregation.outlier_fragments import (
    Detector,
    Points,
    principal_components,
    standardise,
)
from fedface.random import numpy_stream

DETECTOR = Detector(n_components=8, quantile=0.99, support_fraction=0.75)


def rng():
    return numpy_stream(0, "test")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_clients", [4, 5])
def test_standardise_matches_the_definition(n_clients):
    fragments = normal(n_clients, 3, 6) * torch.tensor([1.0, 10.0, 0.1])[:, None] + 5
    result = standardise(fragments)
    for f in range(3):
        centre = [statistics.median(fragments[:, f, j].tolist()) for j in range(6)]
        deviations = [
            [float(fragments[i, f, j]) - centre[j] for j in range(6)] for i in range(n_clients)
        ]
        scale = 1.4826 * statistics.median([abs(d) for row in deviations for d in row])
        for i in range(n_clients):
            assert result[i, f].tolist() == pytest.approx(
                [d / scale for d in deviations[i]], rel=1e-4, abs=1e-4
            )


def test_the_scale_of_a_wide_layer_is_measured_on_some_coordinates(monkeypatch):
    fragments = normal(20, 4, 3000) * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None]
    some = standardise(fragments)
    monkeypatch.setattr(outlier_fragments, "MEASURED", 20 * 3000)
    every = standardise(fragments)
    ratio = (some / every)[0, :, 0]
    assert ratio.tolist() != [1.0] * 4
    torch.testing.assert_close(some, ratio[:, None] * every)
    torch.testing.assert_close(ratio, torch.ones(4), rtol=0.03, atol=0)


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


def test_lengths_divide_the_fragments():
    fragments, lengths = normal(8, 30, 12), torch.linspace(0.5, 2, 8, dtype=torch.float64)
    take = outlier_fragments._taken_from(fragments * lengths.float()[:, None, None])
    found = Points(take, (8, 30, 12), lengths.numpy())
    torch.testing.assert_close(torch.from_numpy(found.at(slice(None))), standardise(fragments))


def test_standardise_survives_agreement_and_enormous_values():
    fragments = torch.ones(5, 2, 3)
    assert not bool(standardise(fragments).any())
    fragments[0, 0] = 1.5
    fragments[1, 1] = 1e38
    fragments[2:, 1] += 1e-3 * normal(3, 3)
    result = standardise(fragments)
    assert bool(result.isfinite().all())
    assert float(result[0, 0].min()) > 1 and float(result[1, 1].min()) > 1


def test_components_span_what_an_exact_decomposition_spans():
    points = normal(300, 40) * torch.cat((torch.linspace(9, 4, 5), torch.ones(35)))
    ours = principal_components(points, 5, rng())
    left, singular, _ = torch.linalg.svd(points, full_matrices=False)
    exact = (left * singular)[:, :5]
    torch.testing.assert_close(ours.abs(), exact.abs(), rtol=1e-2, atol=1e-2)
    assert not bool(principal_components(torch.zeros(30, 4), 2, rng()).any())


@pytest.mark.parametrize("shape", [(300, 40), (60, 400)])
def test_components_follow_a_permutation_of_points(shape):
    points = normal(*shape)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
    one = principal_components(points, 5, rng())
    other = principal_components(points[order], 5, rng())
    torch.testing.assert_close(other.abs(), one[order].abs(), rtol=1e-3, atol=1e-3)


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


def subspace_of(points, axes):
    """How much of the best possible extent the coordinates ``axes`` of ``points`` hold."""
    best = torch.linalg.svdvals(points.double())[: axes.shape[1]].square().sum()
    return float(axes.double().square().sum() / best)


@pytest.mark.parametrize("held", [1 << 22, 20 * 40 * 12, 20 * 40 * 3])
def test_a_layer_too_large_to_hold_gives_almost_the_same_components(held, monkeypatch):
    """Of 64 positions all, 12 or 3 are held: the last iteration sees all of them anyway."""
    fragments = normal(20, 64, 40) * torch.cat((torch.linspace(6, 3, 8), torch.ones(32)))
    monkeypatch.setattr(outlier_fragments, "HELD", held)
    take = outlier_fragments._taken_from(fragments)
    found = torch.from_numpy(Points(take, (20, 64, 40)).components(8, rng())).flatten(0, 1)
    assert subspace_of(standardise(fragments).flatten(0, 1), found) > 0.99


def test_an_attack_on_few_positions_is_found_though_few_are_held(monkeypatch):
    monkeypatch.setattr(outlier_fragments, "HELD", 20 * 72 * 6)
    for seed in range(4):
        fragments = normal(20, 128, 72, seed=seed)
        fragments[[3, 7], :8] += 2.0 * normal(72, seed=50 + seed)
        flags = DETECTOR.flags(fragments, numpy_stream(seed, "test"))
        assert float(flags[[3, 7], :8].double().mean()) > 0.9
        flags[[3, 7], :8] = False
        assert float(flags.double().mean()) < 0.03


def test_permuting_clients_permutes_the_flags_of_a_layer_too_large_to_hold(monkeypatch):
    monkeypatch.setattr(outlier_fragments, "HELD", 10 * 36 * 5)
    fragments = normal(10, 48, 36)
    fragments[4] *= 2
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    one, other = DETECTOR.flags(fragments, rng()), DETECTOR.flags(fragments[order], rng())
    assert int((other != one[order]).sum()) <= 1
