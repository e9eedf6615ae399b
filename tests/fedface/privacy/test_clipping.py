import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.privacy.clipping import clip, standard_normal
from fedface.random import stream

EXTREMES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, -3.4e38, 3.4e38, 1.0, 1e-20]),
)
ROWS = st.integers(1, 6).flatmap(
    lambda d: st.lists(st.lists(EXTREMES, min_size=d, max_size=d), min_size=1, max_size=5)
)
BOUNDS = st.floats(1e-6, 1e6)


def lengths(u: torch.Tensor) -> np.ndarray:
    wide = u.detach().numpy().astype(np.longdouble)
    return np.sqrt((wide**2).sum(1))


@settings(max_examples=150, deadline=None)
@given(ROWS, BOUNDS)
def test_no_row_is_longer_than_the_bound_and_no_two_are_farther_than_twice(
    rows: list[list[float]], bound: float
) -> None:
    u = clip(torch.tensor(rows, dtype=torch.float32), bound)
    wide = u.numpy().astype(np.longdouble)
    assert (lengths(u) <= bound * (1 + 1e-15)).all()
    distances = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(2))
    assert (distances <= 2 * bound * (1 + 1e-15)).all()
    assert torch.equal(clip(u, bound), u)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), BOUNDS, st.integers(0, 100))
def test_clipping_is_the_definition_on_ordinary_rows(dim: int, bound: float, seed: int) -> None:
    h = 3 * bound * torch.rand(4, 1) * torch.randn(4, dim, generator=stream(seed, "rows"))
    u = clip(h, bound)
    for row, clipped in zip(h.double(), u, strict=True):
        factor = min(1.0, bound / row.norm().item())
        assert torch.allclose(clipped.double(), row * factor, rtol=1e-6, atol=0)
    inside = h.double().norm(dim=1) <= bound
    assert torch.equal(u[inside], h[inside])


def test_huge_float64_rows_are_clipped_and_half_precision_becomes_float32() -> None:
    u = clip(torch.tensor([[1e308, -1e308, 1e308]], dtype=torch.float64), 2.0)
    assert u.norm().item() == pytest.approx(2.0)
    assert u.norm().item() <= 2.0
    assert clip(torch.full((2, 3), 4.0, dtype=torch.bfloat16), 1.0).dtype == torch.float32


def test_the_gradient_is_that_of_the_definition_and_finite_at_zero() -> None:
    h = torch.randn(6, 4, generator=stream(0, "rows"), dtype=torch.float64)
    h = torch.cat([h, 0.1 * h, torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_()
    weights = torch.randn(13, 4, generator=stream(1, "rows"), dtype=torch.float64)
    (clip(h, 1.0) * weights).sum().backward()
    found = h.grad.clone()
    h.grad = None
    factor = (1.0 / h[:-1].norm(dim=1, keepdim=True)).clamp(max=1.0)
    (h[:-1] * factor * weights[:-1]).sum().backward()
    assert torch.allclose(found[:-1], h.grad[:-1], rtol=1e-6, atol=1e-9)
    assert torch.equal(found[-1], weights[-1])


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), "1 of 2 rows that are not, .* row 1"),
        (torch.tensor([[torch.inf, 1.0]]), "1 of 1 rows"),
        (torch.zeros(3), r"shape \(batch, dim >= 1\) .* got \(3,\)"),
        (torch.zeros(3, 0), "dim >= 1"),
        (torch.zeros(3, 2, dtype=torch.int64), "floating type, .*int64"),
    ],
)
def test_what_cannot_be_clipped_is_refused(h: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip(h, 1.0)


def test_noise_has_the_shape_and_type_and_moves_on() -> None:
    rng = stream(0, "noise")
    first = standard_normal(torch.zeros(3, 2), rng)
    assert first.shape == (3, 2) and first.dtype == torch.float32
    assert not torch.equal(first, standard_normal(torch.zeros(3, 2), rng))
    wide = standard_normal(torch.zeros(3, 2, dtype=torch.float64), rng)
    assert wide.dtype == torch.float64
