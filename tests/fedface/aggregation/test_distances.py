import pytest
import torch

from fedface.aggregation import distances
from fedface.aggregation.distances import (
    centred_gram,
    gram,
    pairwise_squared_distances,
    products_with,
    update_norms,
)
from tests.fedface.aggregation.properties import random_updates


def loops(rows, value):
    return torch.tensor([[float(value(a, b)) for b in rows] for a in rows], dtype=torch.float64)


def test_distances_match_the_definition_whatever_the_block():
    updates = random_updates(6, 50)
    expected = loops(updates.double(), lambda a, b: ((a - b) ** 2).sum())
    for block in (1, 7, 50, 1000):
        torch.testing.assert_close(pairwise_squared_distances(updates, block), expected)


def test_distances_survive_near_parallel_rows():
    updates = 100 * random_updates(1, 20_000).repeat(5, 1) + 1e-3 * random_updates(5, 20_000)
    expected = loops(updates.double(), lambda a, b: ((a - b) ** 2).sum())
    torch.testing.assert_close(pairwise_squared_distances(updates), expected, rtol=1e-6, atol=0)


def test_distances_are_symmetric_with_a_zero_diagonal():
    distances = pairwise_squared_distances(random_updates(5, 33))
    assert torch.equal(distances, distances.T) and float(distances.diagonal().abs().max()) == 0


def test_gram_matches_the_definition_centred_or_not():
    rows = random_updates(4, 30).double()
    torch.testing.assert_close(gram(rows.float(), block=8), loops(rows, torch.dot))
    expected = loops(rows - rows[2], torch.dot)
    torch.testing.assert_close(gram(rows.float(), origin=2, block=8), expected)


@pytest.mark.parametrize("chosen", [None, torch.tensor([3, 0])])
def test_inexact_products_have_six_digits_of_the_lengths(chosen):
    rows = 3 * random_updates(1, 50_000) + random_updates(4, 50_000)
    found, exact = gram(rows, chosen=chosen, exact=False), gram(rows, chosen=chosen)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=2e-6, atol=2e-6 * float(exact.max()))


def test_an_enormous_row_leaves_the_distances_among_others_exact():
    updates = random_updates(6, 1000)
    expected = pairwise_squared_distances(updates)
    updates[4] *= 1e14
    others = [0, 1, 2, 3, 5]
    found = pairwise_squared_distances(updates)[others][:, others]
    torch.testing.assert_close(found, expected[others][:, others])


def test_norms_match_the_definition_and_do_not_overflow():
    updates = random_updates(3, 40)
    expected = updates.double().norm(dim=1)
    torch.testing.assert_close(update_norms(updates, block=7), expected)
    torch.testing.assert_close(
        update_norms(torch.full((1, 4), 1e38)), torch.tensor([2e38], dtype=torch.float64)
    )


def test_chosen_rows_alone_count():
    rows, chosen = random_updates(6, 30), torch.tensor([4, 0, 3])
    torch.testing.assert_close(gram(rows, block=7, chosen=chosen), gram(rows[chosen]))
    centred = gram(rows, origin=1, chosen=chosen)
    torch.testing.assert_close(centred, gram(rows[chosen], origin=1))


@pytest.mark.parametrize("closeness", [0.0, 1.0, 10.0, 1e3, 1e6])
def test_products_about_the_central_row_are_exact_in_one_pass_or_two(closeness, monkeypatch):
    """Nine digits are left whichever path is taken."""
    updates = closeness * random_updates(1, 2000) + random_updates(7, 2000, seed=1)
    passes = []
    monkeypatch.setattr(distances, "gram", lambda *a, **k: passes.append(1) or gram(*a, **k))
    found = centred_gram(updates)
    exact = updates.double()
    centre = int(exact.norm(dim=1).argsort()[3])
    apart = exact - exact[centre]
    torch.testing.assert_close(found, apart @ apart.T, rtol=1e-9, atol=1e-9 * float(apart.norm()))
    assert torch.equal(found, found.T) and found[centre].tolist() == [0] * 7
    assert len(passes) == (1 if closeness <= 10 else 2)


def test_copies_of_the_central_row_have_no_distance_from_it():
    updates = random_updates(5, 1000)
    updates[3] = updates[1] = updates[0]
    found = pairwise_squared_distances(updates)
    assert found[0, 1] == found[1, 3] == found[0, 3] == 0


def test_products_with_a_vector_match_the_definition():
    updates, vector = random_updates(4, 50), random_updates(1, 50, seed=9)[0]
    expected = updates.double() @ vector.double()
    torch.testing.assert_close(products_with(updates, vector, block=8), expected)
