import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedface.aggregation.shared_direction import MIN_CLIENTS, SharedDirection, shares, sharing


def vectors(n: int = 20, dim: int = 4000, seed: int = 0, consensus: float = 1.0) -> Tensor:
    """Honest sites: a common part and a part of each site's own, of one length."""
    g = torch.Generator().manual_seed(seed)
    common = consensus * torch.randn(dim, generator=g, dtype=torch.float64)
    return common + torch.randn(n, dim, generator=g, dtype=torch.float64)


def colluding(
    members: tuple[int, ...], strength: float, n: int = 20, seed: int = 0, **kw: float
) -> Tensor:
    rows = vectors(n, seed=seed, **kw)
    g = torch.Generator().manual_seed(1000 + seed)
    rows[list(members)] += strength * torch.randn(rows.shape[1], generator=g, dtype=torch.float64)
    return rows


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def judged(rows: Tensor, rule: SharedDirection | None = None, before: tuple[int, ...] = ()):
    shut_out = torch.zeros(len(rows), dtype=torch.bool)
    shut_out[list(before)] = True
    scores, found = (rule or SharedDirection()).judge(gram(rows), shut_out)
    return scores, found.nonzero().squeeze(1).tolist()


def test_shares_are_what_their_definition_says():
    rows = vectors(9, 30, seed=3)
    core = torch.tensor([True, False, True, True, False, True, True, False, True])
    result = shares(gram(rows), core)
    for i in range(9):
        for j in range(9):
            if i == j:
                assert float(result[i, j]) == 0
                continue
            others = [k for k in range(9) if core[k] and k not in (i, j)]
            mean = sum(rows[k] for k in others) / len(others)
            cosine = torch.cosine_similarity(rows[i] - mean, rows[j] - mean, dim=0)
            null = 1 / (len(others) + 1)
            assert float(result[i, j]) == pytest.approx(float((cosine - null) / (1 - null)))


@pytest.mark.parametrize("consensus", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("n", [6, 10, 20])
def test_honest_pairs_share_nothing_whatever_the_consensus(n, consensus):
    """The null is absolute: its centre is zero, and a centre off by a tenth would be seen."""
    core = torch.zeros(n, dtype=torch.bool)
    core[: n // 2 + 1] = True
    values = []
    for seed in range(8):
        rho = shares(gram(vectors(n, seed=seed, consensus=consensus)), core)
        values.append(rho[tuple(torch.triu_indices(n, n, offset=1))])
    mean = float(torch.cat(values).mean())
    assert abs(mean) < 0.01
    assert abs(mean - 0.1) > 0.05


def test_colluders_share_what_they_have_in_common():
    members = (1, 4, 9)
    rho = sharing(gram(colluding(members, 1.0))).shares
    inside = [float(rho[i, j]) for i in members for j in members if i < j]
    assert inside == pytest.approx([0.5] * 3, abs=0.05)  # s^2 / (1 + s^2)
    assert abs(float(rho[0, 1])) < 0.1


@pytest.mark.parametrize("n_malicious", [2, 4, 8, 9])
def test_a_minority_that_colludes_is_shut_out_and_nobody_else(n_malicious):
    for seed in range(4):
        members = tuple(range(0, 2 * n_malicious, 2))
        rows = colluding(members, 0.6, seed=seed)
        assert not bool(sharing(gram(rows)).core[list(members)].any())
        assert judged(rows)[1] == list(members)


def test_honest_cohorts_lose_hardly_anybody():
    lost = sum(len(judged(vectors(20, seed=seed))[1]) for seed in range(30))
    assert lost <= 0.01 * 600


def test_ten_clients_with_two_colluders():
    assert judged(colluding((3, 7), 1.0, n=10))[1] == [3, 7]


def test_scale_does_not_matter_and_scores_grow_with_what_is_shared():
    rows = colluding((2, 5, 11), 0.6)
    weak, strong = (judged(colluding((2, 5, 11), s))[0][2] for s in (0.4, 0.9))
    assert float(strong) > float(weak)
    torch.testing.assert_close(judged(1e-6 * rows)[0], judged(rows)[0])


def test_permuting_clients_permutes_scores():
    rows = colluding((2, 5, 11), 0.6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(judged(rows[order])[0], judged(rows)[0][order])


def test_who_was_shut_out_needs_less_evidence_to_stay_out():
    rows = colluding((2, 5), 0.3)
    scores, fresh = judged(rows)
    assert 4 < float(scores[2]) < 5.5 and fresh == []
    assert set(judged(rows, before=(2, 5, 7))[1]) >= {2, 5}
    assert judged(vectors(20, seed=1), before=(7,))[1] == []


def test_weight_falls_from_doubt_to_the_limit():
    scores = torch.tensor([0.0, 2.5, 4.0, 5.5, 9.0], dtype=torch.float64)
    assert SharedDirection().certainty(scores).tolist() == [1, 1, 0.5, 0, 0]
    assert SharedDirection(doubt_z=None).certainty(scores).tolist() == [1] * 5


@pytest.mark.parametrize("doubt_z", [5.5, 7.0])
def test_doubt_begins_before_the_limit(doubt_z):
    with pytest.raises(
        ValidationError, match=f"doubt_z needs to be under max_z=5.5, got {doubt_z}"
    ):
        SharedDirection(doubt_z=doubt_z)


def test_implanting_more_than_is_doubted_has_less_influence():
    """Four colluders: strength times what is left of their weight is most where doubt begins."""
    rule, strengths = SharedDirection(), torch.linspace(0, 0.6, 13)
    scores = [
        judged(colluding((0, 5, 9, 13), float(s)))[0][[0, 5, 9, 13]].mean() for s in strengths
    ]
    left = rule.certainty(torch.stack(scores))
    best = int((strengths * left).argmax())
    assert 1.5 < float(scores[best]) < 3.5
    assert float(scores[-1]) > rule.max_z and float(left[-1]) == 0


def test_the_least_spread_is_believed():
    rows = vectors(20, dim=10**5)
    found = sharing(gram(rows))
    assert found.spread < 0.012
    largest = float(found.scores(3, 0.75, 0.012).max())
    assert largest == pytest.approx(float(found.scores(3, 0.75, 0.024).max()) * 2)


@pytest.mark.parametrize("n", range(1, MIN_CLIENTS))
def test_too_few_clients_are_not_judged(n):
    scores, found = judged(colluding((0,), 5.0, n=n))
    assert scores.tolist() == [0] * n and found == []
    with pytest.raises(ValueError, match=f"at least 6 clients, got {n}"):
        sharing(gram(vectors(n)))


def test_zero_and_equal_rows_share_nothing():
    assert judged(torch.zeros(8, 5, dtype=torch.float64))[1] == []
    assert judged(torch.ones(8, 5, dtype=torch.float64))[1] == []
    rows = vectors(8)
    rows[3] = 0
    assert bool(judged(rows)[0].isfinite().all())
