import pytest
import torch

from fedface.aggregation.krum import MultiKrum, krum_scores
from tests.fedface.aggregation.properties import (
    PROPERTIES,
    aggregate,
    make_cohort,
    random_updates,
)


def paper_scores(updates, f):
    """The score s(i) of Blanchard et al., in loops."""
    n = len(updates)
    scores = []
    for i in range(n):
        others = sorted(float(((updates[i] - updates[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(others[: n - f - 2]))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_scores_match_the_paper(f):
    updates = random_updates(9, 40)
    torch.testing.assert_close(krum_scores(updates, f), paper_scores(updates.double(), f))


@pytest.mark.parametrize(("f", "m"), [(2, 1), (2, 4), (1, None)])
def test_averages_the_lowest_scores(f, m):
    updates = random_updates(9, 40)
    scores = paper_scores(updates.double(), f)
    chosen = sorted(range(9), key=lambda i: float(scores[i]))[: m or 9 - f]
    result = aggregate(MultiKrum(n_byzantine=f, n_selected=m), make_cohort(updates))
    torch.testing.assert_close(result.update, updates[chosen].mean(dim=0))
    assert result.trust.nonzero().squeeze(1).tolist() == sorted(chosen)


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (7, 5), (20, 12)])
def test_without_an_oracle_f_is_the_most_that_the_paper_allows(n, kept):
    result = aggregate(MultiKrum(), make_cohort(random_updates(n, 10)))
    assert int((result.trust > 0).sum()) == kept


def test_ignores_outliers_that_the_mean_follows():
    updates = random_updates(9, 20)
    updates[[3, 5]] += 1e6
    result = aggregate(MultiKrum(n_byzantine=2), make_cohort(updates))
    assert result.trust[[3, 5]].tolist() == [0, 0]
    assert float(result.update.norm()) < 10


@pytest.mark.parametrize(
    ("rule", "n", "match"),
    [
        (MultiKrum(n_byzantine=2), 6, r"n_clients >= 2 \* n_byzantine \+ 3, got n_clients=6"),
        (MultiKrum(n_byzantine=0), 2, "got n_clients=2"),
        (MultiKrum(n_selected=8), 7, "got n_selected=8, n_clients=7"),
    ],
)
def test_impossible_settings_raise(rule, n, match):
    with pytest.raises(ValueError, match=match):
        aggregate(rule, make_cohort(random_updates(n, 4)))


@pytest.mark.parametrize("prop", PROPERTIES)
def test_property(prop):
    prop(MultiKrum())
