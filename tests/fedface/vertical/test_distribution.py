import math

import pytest
import torch
from pydantic import TypeAdapter
from pytorch_metric_learning import losses, miners, reducers
from pytorch_metric_learning.distances import LpDistance

from fedface.random import stream
from fedface.vertical.distribution import (
    AnyDistribution,
    Centre,
    Etf,
    Lda,
    NoDistribution,
    SupervisedContrastive,
    Triplet,
    lda_ratio,
    simplex,
    supervised_contrastive,
    triplet,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2, 4, 1])
LOSSES = [SupervisedContrastive(), Triplet(), Triplet(mining="hard"), Etf(), Centre(), Lda()]


def batch(seed: int = 0, n: int = 10, dim: int = 6) -> torch.Tensor:
    return torch.randn(n, dim, generator=stream(seed, "z"), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_supervised_contrastive_is_its_definition(temperature: float) -> None:
    z = batch()
    unit = [row / row.norm() for row in z]
    anchors = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and LABELS[p] == LABELS[i]]
        if not positives:
            continue
        others = sum(math.exp(unit[i] @ unit[a] / temperature) for a in range(len(z)) if a != i)
        total = sum(math.log(math.exp(unit[i] @ unit[p] / temperature) / others) for p in positives)
        anchors.append(-total / len(positives))
    found = supervised_contrastive(z, LABELS, temperature).item()
    assert found == pytest.approx(sum(anchors) / len(anchors))


def test_supervised_contrastive_agrees_with_pytorch_metric_learning() -> None:
    z, labels = batch(1), LABELS.clone()
    labels[labels > 2] = (
        2  # theirs also averages anchors without positives, as zeros, or drops them
    )
    theirs = losses.SupConLoss(temperature=0.5, reducer=reducers.MeanReducer())(z, labels)
    assert supervised_contrastive(z, labels, 0.5).item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_semi_hard_triplets_are_their_definition_and_pytorch_metric_learnings(
    margin: float,
) -> None:
    z, found = batch(2), []
    for a in range(10):
        for p in range(10):
            for n in range(10):
                if a == p or LABELS[a] != LABELS[p] or LABELS[a] == LABELS[n]:
                    continue
                near, far = (z[a] - z[p]).norm().item(), (z[a] - z[n]).norm().item()
                if near < far < near + margin:
                    found.append(near - far + margin)
    ours = triplet(z, LABELS, margin, "semi_hard").item()
    assert ours == pytest.approx(sum(found) / len(found))
    plain = LpDistance(normalize_embeddings=False)
    mined = miners.TripletMarginMiner(margin, type_of_triplets="semihard", distance=plain)
    theirs = losses.TripletMarginLoss(margin, distance=plain)(z, LABELS, mined(z, LABELS))
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def test_hard_triplets_are_their_definition() -> None:
    z, found = batch(3), []
    for a in range(10):
        positive = [(z[a] - z[p]).norm() for p in range(10) if p != a and LABELS[p] == LABELS[a]]
        negative = [(z[a] - z[n]).norm() for n in range(10) if LABELS[n] != LABELS[a]]
        if positive:
            found.append(max(0.0, (max(positive) - min(negative) + 1.0).item()))
    assert triplet(z, LABELS, 1.0, "hard").item() == pytest.approx(sum(found) / len(found))


def test_lda_is_its_definition() -> None:
    z = batch(4)
    kept = [i for i in range(10) if (LABELS[i] == LABELS).sum() > 1]
    mean = sum(z[i] for i in kept) / len(kept)
    within = between = 0.0
    for i in kept:
        own = [j for j in kept if LABELS[j] == LABELS[i]]
        centre = sum(z[j] for j in own) / len(own)
        within += float(((z[i] - centre) ** 2).sum())
        between += float(((centre - mean) ** 2).sum())
    assert lda_ratio(z, LABELS).item() == pytest.approx(within / (within + between))


@pytest.mark.parametrize(("n", "dim"), [(2, 1), (2, 5), (5, 4), (7, 30)])
def test_the_simplex_is_regular_and_of_the_radius(n: int, dim: int) -> None:
    vertices = simplex(n, dim, 1.5, stream(0, "simplex")).double()
    assert torch.allclose(vertices.norm(dim=1), torch.full((n,), 1.5, dtype=torch.float64))
    assert vertices.sum(0).abs().max() < 1e-5
    distances = torch.pdist(vertices)
    assert torch.allclose(distances, torch.full_like(distances, 1.5 * math.sqrt(2 * n / (n - 1))))
    if n > 2:
        assert not torch.allclose(vertices, simplex(n, dim, 1.5, stream(1, "simplex")).double())


@pytest.mark.parametrize(("n", "dim"), [(1, 4), (6, 4)])
def test_a_simplex_that_does_not_exist_is_refused(n: int, dim: int) -> None:
    with pytest.raises(ValueError, match=f"got n_identities={n}, dim={dim}"):
        simplex(n, dim, 1.0, stream(0, "simplex"))


def test_centre_losses_are_squared_distances() -> None:
    z = batch(5).float()
    etf = Etf().build(6, 5, 2.0, stream(0, "etf"))
    wanted = [
        float((row - etf.centres[y]).square().sum()) / 4 for row, y in zip(z, LABELS, strict=True)
    ]
    assert etf(z, LABELS).item() == pytest.approx(sum(wanted) / 10)
    assert not list(etf.parameters())
    learnt = Centre().build(6, 5, 2.0, stream(0, "centre"))
    unit = torch.nn.functional.normalize(learnt.centres.detach())
    wanted = [
        float((row - 2 * unit[y]).square().sum()) / 4 for row, y in zip(z, LABELS, strict=True)
    ]
    assert learnt(z, LABELS).item() == pytest.approx(sum(wanted) / 10)
    assert len(list(learnt.parameters())) == 1


@pytest.mark.parametrize("config", LOSSES)
def test_each_loss_falls_when_people_come_together_and_apart(config) -> None:
    loss = config.build(6, 5, 1.0, stream(0, "loss"))
    targets = simplex(5, 6, 1.0, stream(0, "loss"))
    if isinstance(config, Centre):
        targets = torch.nn.functional.normalize(loss.centres.detach())
    noise = torch.randn(10, 6, generator=stream(0, "noise"))
    apart, mixed = targets[LABELS] + 0.05 * noise, targets[LABELS] + 0.8 * noise
    assert loss(apart, LABELS) < loss(mixed, LABELS)


@pytest.mark.parametrize("config", LOSSES)
@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2], [0, 0, 1]])
def test_edges_are_finite_with_finite_gradients(config, labels: list[int]) -> None:
    loss = config.build(6, 5, 1.0, stream(0, "loss"))
    for z in (batch(6, len(labels)).float(), torch.zeros(len(labels), 6)):
        z.requires_grad_()
        value = loss(z, torch.tensor(labels))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("config", [SupervisedContrastive(), Triplet(), Lda(), Etf()])
def test_only_the_direction_or_the_ratio_to_c_matters(config) -> None:
    z = batch(7).float()
    one = config.build(6, 5, 1.0, stream(0, "loss"))(z, LABELS)
    five = config.build(6, 5, 5.0, stream(0, "loss"))(5 * z, LABELS)
    assert one.item() == pytest.approx(five.item(), rel=1e-5)


def test_the_union_reads_each_by_name() -> None:
    read = TypeAdapter(AnyDistribution).validate_python
    for config in (*LOSSES, NoDistribution()):
        assert read({"name": config.name}).name == config.name
    assert NoDistribution().build(6, 5, 1.0, stream(0, "loss")) is None


def test_the_linear_etf_is_the_squared_one_on_the_sphere_and_its_gradient_holds_no_noise() -> None:
    linear = Etf(linear=True).build(6, 5, 2.0, stream(0, "etf"))
    squared = Etf().build(6, 5, 2.0, stream(0, "etf"))
    sphere = (2.0 * torch.nn.functional.normalize(batch())).requires_grad_()
    assert linear(sphere, LABELS).item() == pytest.approx(squared(sphere, LABELS).item(), rel=1e-5)
    gradients = {}
    for noise in (0.0, 10.0):
        for name, loss in (("linear", linear), ("squared", squared)):
            z = (sphere.detach() + noise * batch(1)).requires_grad_()
            loss(z, LABELS).backward()
            gradients[name, noise] = z.grad
    assert torch.equal(gradients["linear", 0.0], gradients["linear", 10.0])
    expected = -2 * linear.centres[LABELS].double() / (10 * 4)
    assert torch.allclose(gradients["linear", 0.0], expected, atol=1e-6)
    assert not torch.allclose(gradients["squared", 0.0], gradients["squared", 10.0], atol=0.1)
