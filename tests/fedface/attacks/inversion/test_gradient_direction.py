import pytest
import torch
from torch.nn import functional

from fedface.attacks.inversion import GradientDirection
from fedface.privacy.clipping import clip
from fedface.random import stream


def softmax_gradients(n: int, n_labels: int, n_epochs: int = 2):
    """dL / dz of a softmax model over ``n_labels`` that has learnt nothing yet."""
    rng = stream(0, "records")
    labels = torch.arange(n) % n_labels
    epochs = []
    for _ in range(n_epochs):
        z = torch.randn(n, 8, generator=rng).requires_grad_()
        weight = torch.randn(8, n_labels, generator=rng)
        functional.cross_entropy(z @ weight * 0.3, labels).backward()
        epochs.append(z.grad)
    return torch.stack(epochs), labels


def test_one_known_record_per_label_gives_the_others_away() -> None:
    gradients, labels = softmax_gradients(120, 6)
    known = torch.arange(6)
    found = GradientDirection()(gradients, known, labels[known]).argmax(1)
    assert float((found == labels)[6:].float().mean()) > 0.9


def test_bounding_the_length_does_not_help() -> None:
    gradients, labels = softmax_gradients(60, 6)
    bounded = torch.stack([clip(epoch, 1e-4) for epoch in gradients])
    attack, known = GradientDirection(), torch.arange(6)
    first, second = (attack(g, known, labels[known]) for g in (gradients, bounded))
    assert torch.allclose(first, second, atol=1e-5)


def test_scores_are_mean_cosines() -> None:
    gradients = torch.randn(3, 6, 4, generator=stream(0))
    gradients[0, 5] = 0
    known, labels = torch.tensor([4, 1, 0]), torch.tensor([1, 0, 1])
    found = GradientDirection()(gradients, known, labels)

    def cosine(a, b):
        return sum(float(functional.cosine_similarity(e[a], e[b], dim=0)) for e in gradients) / 3

    for i in range(6):
        assert float(found[i, 0]) == pytest.approx(cosine(i, 1), abs=1e-6)
        assert float(found[i, 1]) == pytest.approx((cosine(i, 4) + cosine(i, 0)) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("known", "labels", "message"),
    [
        ([0, 1], [0], "one shape"),
        ([0, 6], [0, 1], "different places"),
        ([2, 2], [0, 1], "different places"),
        ([0, 1], [0, 2], "needs a known record"),
        ([0, 1], [-1, 0], "needs a known record"),
        ([], [], "one shape"),
    ],
)
def test_known_records_are_checked(known, labels, message: str) -> None:
    known, labels = (torch.tensor(x, dtype=torch.int64) for x in (known, labels))
    with pytest.raises(ValueError, match=message):
        GradientDirection()(torch.ones(1, 6, 2), known, labels)
