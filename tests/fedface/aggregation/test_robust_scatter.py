import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.covariance import MinCovDet

from fedface.aggregation.robust_scatter import robust_scatter


def contaminated(n=400, r=5, share=0.2, seed=0):
    """Correlated Gaussians of unequal spread and, last, a displaced cluster."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.diag(torch.linspace(1, 3, r, dtype=torch.float64))
    spread[0, 1] = 0.5
    points = torch.randn(n, r, generator=g, dtype=torch.float64) @ spread
    n_outliers = round(share * n)
    if n_outliers:
        points[-n_outliers:] = points[-n_outliers:] + 15
    return points, n_outliers


def flagged(distances, r, q=0.99):
    return distances > float(chi2.ppf(q, r))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_min_cov_det_on_contaminated_data(seed):
    points, n_outliers = contaminated(seed=seed)
    ours = robust_scatter(points).squared_distances(points)
    reference = MinCovDet(support_fraction=0.75, random_state=seed).fit(points.numpy())
    theirs = torch.from_numpy(reference.mahalanobis(points.numpy()))
    clean, outliers = slice(0, -n_outliers), slice(-n_outliers, None)
    assert bool(flagged(ours, 5)[outliers].all()) and bool(flagged(theirs, 5)[outliers].all())
    assert float((flagged(ours, 5) != flagged(theirs, 5)).double().mean()) < 0.02
    assert np.corrcoef(ours[clean], theirs[clean])[0, 1] > 0.98
    ratio = float((ours[clean] / theirs[clean]).median())
    assert 0.65 < ratio < 1.1


def test_classical_covariance_is_masked_where_ours_is_not():
    points, n_outliers = contaminated()
    centred = points - points.mean(dim=0)
    classical = ((centred @ torch.linalg.inv(centred.T @ centred / 399)) * centred).sum(dim=1)
    assert float(flagged(classical, 5)[-n_outliers:].double().mean()) < 0.1
    ours = robust_scatter(points).squared_distances(points)
    assert int(flagged(ours, 5)[-n_outliers:].sum()) == n_outliers


def test_clean_gaussians_are_flagged_at_the_nominal_rate():
    points, _ = contaminated(n=20_000, share=0)
    fitted = robust_scatter(points)
    share = float(flagged(fitted.squared_distances(points), 5).double().mean())
    assert 0.007 < share < 0.014
    expected = torch.cov(points.T)
    torch.testing.assert_close(fitted.scatter, expected, rtol=0.1, atol=0.15)
    torch.testing.assert_close(fitted.location, torch.zeros(5).double(), rtol=0, atol=0.1)


def test_ends_where_a_concentration_step_changes_nothing():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(300, 2, generator=g, dtype=torch.float64)
    points[:, 1] = 0.95 * points[:, 0] + 0.3 * points[:, 1]
    points[-60:] = points[-60:] + torch.tensor([1.5, -1.5])
    fitted = robust_scatter(points)
    nearest = points[fitted.squared_distances(points).argsort()[:225]]
    torch.testing.assert_close(nearest.mean(dim=0), fitted.location)
    again = torch.cov(nearest.T)
    torch.testing.assert_close(again / again.trace(), fitted.scatter / fitted.scatter.trace())


def test_the_median_distance_is_that_of_chi_square():
    points, _ = contaminated()
    distances = robust_scatter(points).squared_distances(points)
    assert float(distances.quantile(0.5)) == pytest.approx(float(chi2.ppf(0.5, 5)))


def test_the_order_of_points_does_not_matter():
    points, _ = contaminated()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    one = robust_scatter(points).squared_distances(points)
    other = robust_scatter(points[order]).squared_distances(points[order])
    torch.testing.assert_close(other, one[order])


def test_more_than_a_quarter_needs_a_lower_support():
    points, n_outliers = contaminated(share=0.4)
    default = flagged(robust_scatter(points).squared_distances(points), 5)[-n_outliers:]
    lower = robust_scatter(points, 0.55).squared_distances(points)
    assert float(default.double().mean()) < 0.1
    assert bool(flagged(lower, 5)[-n_outliers:].all())


def test_equal_points_have_no_distance():
    for n in range(5, 30):  # for some n the mean of n times 0.1 is not 0.1
        points = torch.full((n, 3), 0.1, dtype=torch.float64)
        assert robust_scatter(points).squared_distances(points).tolist() == [0] * n


def test_one_odd_point_among_equal_ones_is_far_and_finite():
    points = torch.zeros(20, 3)
    points[7, 1] = 1e-3
    distances = robust_scatter(points).squared_distances(points)
    assert bool(distances.isfinite().all()) and float(distances[7]) > 1e4
    assert float(distances.sum() - distances[7]) < 1e-6


def test_a_direction_without_variance_flags_who_leaves_it():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    points[:, 2] = 1.0
    points[3, 2] = 1.1
    distances = robust_scatter(points).squared_distances(points)
    assert int(distances.argmax()) == 3 and float(distances[3]) > 1e4
    others = torch.cat((distances[:3], distances[4:]))
    assert float(others.max()) < 30


@pytest.mark.parametrize(
    ("shape", "fraction", "match"),
    [((3, 3), 0.75, "at least 4 points"), ((9, 3), 0.4, "support_fraction"), ((9, 3), 1.1, "0.5")],
)
def test_impossible_settings_raise(shape, fraction, match):
    with pytest.raises(ValueError, match=match):
        robust_scatter(torch.zeros(shape), fraction)
