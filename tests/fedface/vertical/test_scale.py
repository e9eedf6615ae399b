import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedface.privacy import EmbeddingRelease
from fedface.random import stream
from fedface.vertical.scale import AnyScale, Learnable, NoScale, Quantile, Sphere

SCALES = [
    NoScale(),
    Sphere(),
    Quantile(),
    Quantile(quantile=0.9, momentum=0.0),
    Learnable(),
    Learnable(initial=1e6),
]
EXTREMES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1e-45, -3.4e38, 3.4e38, 1.0, 1e-20]),
)
ROWS = st.integers(1, 5).flatmap(
    lambda d: st.lists(st.lists(EXTREMES, min_size=d, max_size=d), min_size=1, max_size=4)
)


def lengths(u: torch.Tensor) -> np.ndarray:
    wide = u.detach().numpy().astype(np.longdouble)
    return np.sqrt((wide**2).sum(1))


@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(1e-6, 1e6), st.booleans())
def test_no_option_lets_a_row_out_of_the_ball(
    scale, rows: list[list[float]], bound: float, training: bool
) -> None:
    """Two records are then never farther apart than 2 C, whatever they are: the sensitivity."""
    h = torch.tensor(rows, dtype=torch.float32)
    module = scale.build(h.shape[1], bound).train(training)
    for _ in range(2):  # the second time with what it learnt from the first
        u = module(h)
        assert u.shape == h.shape and u.dtype == torch.float32
        assert torch.isfinite(u).all()
        assert (lengths(u) <= bound * (1 + 1e-15)).all()


@pytest.mark.parametrize("scale", SCALES)
def test_no_option_lets_a_random_row_out_or_changes_the_noise(scale) -> None:
    release = EmbeddingRelease(clip=0.7, epsilon=2, n_releases=5)
    module = scale.build(16, release.bound)
    for seed, size in enumerate((1e-6, 0.1, 1.0, 30.0, 1e8)):
        h = size * torch.randn(400, 16, generator=stream(seed, "h"))
        u = module(h).detach()
        assert (lengths(u) <= 0.7).all()
        z = release.release(u, stream(seed, "noise"))
        assert float((z - u).std() / release.noise) == pytest.approx(1, abs=0.03)


def test_each_option_is_its_definition() -> None:
    h = torch.randn(50, 4, generator=stream(0, "h"), dtype=torch.float64)
    norms = h.norm(dim=1, keepdim=True)
    assert torch.allclose(NoScale().build(4, 1.5)(h), h * (1.5 / norms).clamp(max=1))
    assert torch.allclose(Sphere().build(4, 1.5)(h), 1.5 * h / norms)
    learnt = Learnable(initial=2.0).build(4, 1.5)
    expected = 2 * h * (1.5 / (2 * norms)).clamp(max=1)
    assert torch.allclose(learnt(h), expected, rtol=1e-5)


def test_the_sphere_keeps_directions_of_any_length_and_zero() -> None:
    h = torch.tensor([[3e-42, 4e-42], [3e38, -1e38], [0.0, 0.0], [3.0, 4.0]])
    u = Sphere().build(2, 2.0)(h)
    assert torch.allclose(u[0], torch.tensor([1.2, 1.6]), rtol=1e-2)
    assert torch.allclose(u[3], torch.tensor([1.2, 1.6]))
    assert u[2].tolist() == [0, 0]
    assert (u.norm(dim=1)[[0, 1, 3]] > 1.999).all()


def test_the_quantile_brings_the_typical_length_to_the_bound_from_earlier_batches() -> None:
    h = 5 * torch.randn(101, 8, generator=stream(0, "h"))
    module = Quantile(quantile=0.5, momentum=0.5).build(8, 1.0)
    first = module(h)
    assert torch.allclose(first, NoScale().build(8, 1.0)(h))  # nothing known yet: s = 1
    median = h.norm(dim=1).median().item()
    assert module.level.item() == pytest.approx(median, rel=1e-6)
    second = module(h)
    shorter = h.norm(dim=1) < median
    assert torch.allclose(second[shorter], h[shorter] / median, rtol=1e-5)
    assert torch.allclose(second[~shorter].norm(dim=1), torch.ones(51), atol=1e-5)
    module(3 * h)
    assert module.level.item() == pytest.approx((median + 3 * median) / 2, rel=1e-5)
    level = module.level.item()
    module.eval()(h)
    assert module.level.item() == level
    again = Quantile().build(8, 1.0)
    again.load_state_dict(module.state_dict())
    assert again.level.item() == level


@pytest.mark.parametrize("scale", SCALES)
def test_a_record_does_not_show_in_the_rows_of_others(scale) -> None:
    h = torch.randn(6, 4, generator=stream(0, "h"))
    other = h.clone()
    other[0] *= 1000
    module, twin = scale.build(4, 1.0), scale.build(4, 1.0)
    module(h), twin(h)  # the same past
    assert torch.equal(module(h)[1:], twin(other)[1:])


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_finite_and_reach_the_encoder(scale) -> None:
    h = torch.cat([0.1 * torch.randn(4, 3, generator=stream(0, "h")), torch.zeros(1, 3)])
    h.requires_grad_()
    module = scale.build(3, 1.0)
    (module(h) * torch.arange(3.0)).sum().backward()
    assert torch.isfinite(h.grad).all()
    assert (h.grad[:4].norm(dim=1) > 0).all()


def test_the_learnable_scale_learns() -> None:
    module = Learnable().build(2, 1.0)
    module(torch.tensor([[0.1, 0.0]])).sum().backward()
    assert module.log_scale.grad.item() == pytest.approx(0.1)


@pytest.mark.parametrize("scale", SCALES)
def test_nan_is_refused_and_not_learnt(scale) -> None:
    module = scale.build(2, 1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="finite"):
        module(torch.tensor([[torch.nan, 0.0]]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_union_reads_each_by_name() -> None:
    read = TypeAdapter(AnyScale).validate_python
    for name, kind in (("none", NoScale), ("sphere", Sphere), ("quantile", Quantile)):
        assert isinstance(read({"name": name}), kind)
    assert read({"name": "learnable", "initial": 3}).initial == 3
    with pytest.raises(ValidationError):
        Quantile(quantile=0)
