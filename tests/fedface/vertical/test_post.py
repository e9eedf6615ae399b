import math

import pytest
import torch
from pydantic import TypeAdapter

from fedface.random import stream
from fedface.vertical.post import AnyPost, JamesStein, NoPost, Normalise

DIM, BOUND, SIGMA = 16, 0.5, 0.3


def noisy(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    rng = stream(0, "z")
    u = torch.nn.functional.normalize(torch.randn(n, DIM, generator=rng)) * BOUND
    return u, u + SIGMA * torch.randn(n, DIM, generator=rng)


def test_no_post_brings_a_typical_coordinate_to_one() -> None:
    _, z = noisy()
    out = NoPost().build(DIM, BOUND, SIGMA)(z)
    assert out.square().mean().item() == pytest.approx(1, abs=0.02)
    assert torch.allclose(out / out.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True))
    assert NoPost().build(DIM, None, SIGMA)(z) is not None
    assert torch.equal(NoPost().build(DIM, None, SIGMA)(z), z)


def test_james_stein_is_its_formula_and_nearer_to_the_truth() -> None:
    u, z = noisy()
    out = JamesStein().build(DIM, BOUND, SIGMA)(z) * BOUND / math.sqrt(DIM)
    for row, shrunk in zip(z[:50], out[:50], strict=True):
        factor = max(0.0, 1 - DIM * SIGMA**2 / float(row.square().sum()))
        assert torch.allclose(shrunk, row * factor, atol=1e-6)
    assert (out - u).square().sum() < 0.7 * (z - u).square().sum()
    assert torch.equal(JamesStein().build(DIM, None, 0.0)(z), z)


def test_normalise_keeps_the_direction() -> None:
    _, z = noisy(20)
    out = Normalise().build(DIM, BOUND, SIGMA)(z)
    assert torch.allclose(out.norm(dim=1), torch.full((20,), 4.0))
    assert Normalise().build(DIM, BOUND, SIGMA)(torch.zeros(1, DIM)).abs().sum() == 0


@pytest.mark.parametrize("post", [NoPost(), JamesStein(), Normalise()])
def test_only_sigma_over_c_matters_and_gradients_are_finite(post) -> None:
    _, z = noisy(20)
    z = torch.cat([z, torch.zeros(1, DIM)]).requires_grad_()
    out = post.build(DIM, BOUND, SIGMA)(z)
    assert torch.allclose(out, post.build(DIM, 7 * BOUND, 7 * SIGMA)(7 * z), atol=1e-5)
    out.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_the_union_reads_each_by_name() -> None:
    read = TypeAdapter(AnyPost).validate_python
    assert isinstance(read({"name": "none"}), NoPost)
    assert isinstance(read({"name": "james_stein"}), JamesStein)
    assert isinstance(read({"name": "normalise"}), Normalise)
