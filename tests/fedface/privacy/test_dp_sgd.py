"""The clipped sum against plain loops, and what must be refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedface.backbones import MobileFaceNet, SmallConv
from fedface.heads import ArcFace, CosFace, Softmax
from fedface.privacy.dp_sgd import ClippedSum
from fedface.privacy.unfit import refuse_unfit
from fedface.random import stream

SIZE, N_PEOPLE, D = 32, 5, 16


def models(backbone: str = "small", head: str = "cosface") -> tuple[nn.Module, nn.Module]:
    config = {
        "small": SmallConv(widths=(8, 16, 64, 64), embedding_size=D),
        "mobile": MobileFaceNet(embedding_size=D),
    }[backbone]
    heads = {"cosface": CosFace(scale=16, margin=0.2), "arcface": ArcFace(), "softmax": Softmax()}
    return config.build(SIZE, stream(0, "b")), heads[head].build(D, N_PEOPLE, stream(0, "h"))


def batch(n: int = 7) -> tuple[Tensor, Tensor]:
    rng = stream(1, "batch")
    images = torch.randn(n, 3, SIZE, SIZE, generator=rng)
    return images, torch.randint(0, N_PEOPLE, (n,), generator=rng)


def by_loops(
    backbone: nn.Module,
    head: nn.Module,
    images: Tensor,
    labels: Tensor,
    owners: Tensor,
    clip: float,
) -> list[Tensor]:
    """The definition: one unit after the other, mean gradient, clipped, added."""
    parameters = [p for m in (backbone, head) for p in m.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for unit in owners.unique():
        own = owners == unit
        loss = functional.cross_entropy(head(backbone(images[own]), labels[own]), labels[own])
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for part, gradient in zip(total, gradients, strict=True):
            part += gradient * min(1.0, clip / float(norm))
    return total


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("grouped", [False, True], ids=["image", "subject"])
@pytest.mark.parametrize(
    ("backbone", "head"),
    [("small", "cosface"), ("small", "softmax"), ("small", "arcface"), ("mobile", "cosface")],
)
def test_it_is_the_sum_of_clipped_unit_gradients(
    backbone: str, head: str, grouped: bool, clip: float
) -> None:
    network, margin = models(backbone, head)
    images, labels = batch()
    owners = torch.tensor([0, 1, 1, 2, 0, 1, 3]) if grouped else None
    with ClippedSum(network, margin, clip) as summed:
        loss = summed.add(images, labels, owners)
    each = torch.arange(len(images)) if owners is None else owners
    expected = by_loops(network, margin, images, labels, each, clip)
    for found, wanted in zip(summed.sums, expected, strict=True):
        scale = float(torch.cat([w.flatten() for w in expected]).abs().max())
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5 * scale)
    plain = functional.cross_entropy(margin(network(images), labels), labels, reduction="sum")
    assert loss == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("grouped", [False, True], ids=["image", "subject"])
def test_no_unit_moves_the_sum_by_more_than_the_clip_norm(grouped: bool) -> None:
    network, head = models()
    images, labels = batch(1)
    owners = torch.zeros(6, dtype=torch.int64) if grouped else None
    images, labels = (images.repeat(6, 1, 1, 1), labels.repeat(6)) if grouped else (images, labels)
    with ClippedSum(network, head, 0.5) as summed:
        summed.add(50 * images, labels, owners)
    norm = torch.stack([s.double().norm() for s in summed.sums]).norm()
    assert 0.49 < float(norm) <= 0.5


def test_pieces_of_a_batch_add_up_and_a_reset_starts_anew() -> None:
    network, head = models()
    images, labels = batch()
    with ClippedSum(network, head, 0.1) as summed:
        summed.add(images, labels)
        whole = [s.clone() for s in summed.sums]
        summed.reset()
        for piece in range(0, len(images), 3):
            summed.add(images[piece : piece + 3], labels[piece : piece + 3])
    for found, wanted in zip(summed.sums, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_it_leaves_the_backbone_as_it_was() -> None:
    network, head = models("mobile")
    before = {n: v.clone() for n, v in network.state_dict().items()}
    attributes = {n: set(vars(m)) for n, m in network.named_modules()}
    with ClippedSum(network, head, 1.0) as summed:
        summed.add(*batch())
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert {n: set(vars(m)) for n, m in network.named_modules()} == attributes
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())


def test_frozen_parameters_stay_out() -> None:
    network, head = models()
    frozen = next(network.parameters())
    frozen.requires_grad_(False)
    with ClippedSum(network, head, 1.0) as summed:
        summed.add(*batch())
    assert all(p is not frozen for p in summed.parameters)


def test_batch_norm_is_refused_with_the_names_of_its_layers() -> None:
    network = SmallConv(norm="batch", widths=(4, 4, 8, 8)).build(SIZE, stream(0, "b"))
    with pytest.raises(ValueError, match=r"found 5 such layer.*layers\.0\.1, .*norm: group"):
        refuse_unfit(network)


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.inner = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(WithBuffer()), "without buffers.*0.seen"),
        (nn.Sequential(Bare()), "in modules without children, found 0"),
    ],
)
def test_other_unfit_models_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_unfit(model)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu_()


@pytest.mark.parametrize(("network", "message"), [(Twice(), "used once"), (InPlace(), "in place")])
def test_passes_that_would_give_wrong_gradients_are_refused(
    network: nn.Module, message: str
) -> None:
    head = CosFace(scale=16, margin=0.2).build(D, N_PEOPLE, stream(0, "h"))
    with ClippedSum(network, head, 1.0) as summed, pytest.raises(ValueError, match=message):
        summed.add(torch.randn(3, D), torch.tensor([0, 1, 2]))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    network, head = models()
    images, labels = batch()
    images[2] = float("nan")
    with ClippedSum(network, head, 1.0) as summed, pytest.raises(ValueError, match="finite"):
        summed.add(images, labels)
