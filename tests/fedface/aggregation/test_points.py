import statistics

import pytest
import torch

from fedface.aggregation import points
from fedface.aggregation.points import Points, principal_components, standardise, taken_from
from fedface.random import numpy_stream


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
    monkeypatch.setattr(points, "MEASURED", 20 * 3000)
    every = standardise(fragments)
    ratio = (some / every)[0, :, 0]
    assert ratio.tolist() != [1.0] * 4
    torch.testing.assert_close(some, ratio[:, None] * every)
    torch.testing.assert_close(ratio, torch.ones(4), rtol=0.03, atol=0)


def test_lengths_divide_the_fragments():
    fragments, lengths = normal(8, 30, 12), torch.linspace(0.5, 2, 8, dtype=torch.float64)
    take = taken_from(fragments * lengths.float()[:, None, None])
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


def subspace_of(points, axes):
    """How much of the best possible extent the coordinates ``axes`` of ``points`` hold."""
    best = torch.linalg.svdvals(points.double())[: axes.shape[1]].square().sum()
    return float(axes.double().square().sum() / best)


@pytest.mark.parametrize("held", [1 << 22, 20 * 40 * 12, 20 * 40 * 3])
def test_a_layer_too_large_to_hold_gives_almost_the_same_components(held, monkeypatch):
    """Of 64 positions all, 12 or 3 are held: the last iteration sees all of them anyway."""
    fragments = normal(20, 64, 40) * torch.cat((torch.linspace(6, 3, 8), torch.ones(32)))
    monkeypatch.setattr(points, "HELD", held)
    take = taken_from(fragments)
    found = torch.from_numpy(Points(take, (20, 64, 40)).components(8, rng())).flatten(0, 1)
    assert subspace_of(standardise(fragments).flatten(0, 1), found) > 0.99
