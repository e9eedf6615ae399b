import pytest
import torch

from fedface.aggregation.signs import sign_sums
from fedface.random import stream


@pytest.mark.parametrize("block", [None, 1, 7])
@pytest.mark.parametrize("n_clients", [1, 2, 5])
def test_matches_the_loops(n_clients, block):
    updates = torch.randn(n_clients, 40, generator=stream(0, "updates"))
    updates[updates.abs() < 0.3] = 0
    before = updates.clone()
    expected = [float(sum((u > 0) - (u < 0) for u in updates[:, j].tolist())) for j in range(40)]
    found = sign_sums(updates, block)
    assert found.tolist() == expected and found.dtype == torch.float32
    assert torch.equal(updates, before)


def test_signs_have_no_size():
    updates = torch.tensor([[1e30, -1e-30, 0.0], [1e-30, -1e30, -0.0]])
    assert sign_sums(updates).tolist() == [2, -2, 0]
