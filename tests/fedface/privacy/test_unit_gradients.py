"""Units' gradients against the definition: one backward pass per image, averaged per unit."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fedface.privacy.unit_gradients import Factored, Units, Whole, squares, weighted

OWNERS = torch.tensor([0, 1, 0, 2, 0, 1])
N, OUT, IN, K = 6, 3, 4, 2


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def factors_of_images(k: int = K) -> tuple[Tensor, Tensor]:
    g = generator()
    return torch.randn(N, OUT, k, generator=g), torch.randn(N, IN, k, generator=g)


def mean_of_units(gradients: Tensor, owners: Tensor | None) -> list[Tensor]:
    if owners is None:
        return list(gradients)
    return [gradients[owners == unit].mean(dim=0) for unit in range(int(owners.max()) + 1)]


@pytest.mark.parametrize("owners", [None, OWNERS, torch.zeros(N, dtype=torch.int64)])
@pytest.mark.parametrize("k", [1, K])
def test_factors_stand_for_the_mean_gradient_of_each_unit(owners: Tensor | None, k: int) -> None:
    left, right = factors_of_images(k)
    expected = mean_of_units(left @ right.mT, owners)
    units = Units(N, owners, torch.device("cpu"))
    parameter = nn.Parameter(torch.zeros(OUT, IN))
    piece = Factored(parameter, *units.joined(left, right))
    whole = Whole(parameter, units.mean(left @ right.mT))
    assert units.n == len(expected)
    assert_close(piece.left @ piece.right.mT, torch.stack(expected))
    assert_close(whole.gradients, torch.stack(expected))
    lengths = torch.tensor([float(g.double().square().sum()) for g in expected]).double()
    for found in (piece, whole):
        assert_close(squares(found), lengths, rtol=1e-5, atol=0)
        some = torch.rand(units.n, generator=generator())
        total = sum(f * g for f, g in zip(some, expected, strict=True))
        assert_close(weighted(found, some), total)


def test_sums_start_at_zero_for_every_unit() -> None:
    zeros = Units(N, OWNERS, torch.device("cpu")).zeros()
    assert zeros.dtype == torch.float64 and zeros.tolist() == [0.0, 0.0, 0.0]
