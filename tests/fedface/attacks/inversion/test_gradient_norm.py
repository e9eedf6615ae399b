import pytest
import torch
from torch.nn import functional

from fedface.attacks.inversion import GradientNorm
from fedface.evaluation.leakage import leak_auc
from fedface.random import stream


def classifier_gradients(n: int, share: float, bound: float | None = None):
    """dL / dz of a logistic model that knows how rare label 1 is and little else."""
    rng = stream(0, "records")
    labels = (torch.rand(n, generator=rng) < share).float()
    direction = torch.randn(8, generator=rng)
    z = (torch.randn(n, 8, generator=rng) + 0.2 * labels[:, None]).requires_grad_()
    logits = z @ direction * 0.3 + torch.logit(torch.tensor(share))
    functional.binary_cross_entropy_with_logits(logits, labels).backward()
    gradient = z.grad
    if bound is not None:
        gradient = bound * functional.normalize(gradient)
    return gradient, labels.bool().numpy()


def test_rare_labels_have_long_gradients_unless_lengths_are_bounded() -> None:
    gradients, labels = classifier_gradients(400, 0.1)
    assert leak_auc(GradientNorm()(gradients[None]).numpy(), labels) > 0.9
    bounded, _ = classifier_gradients(400, 0.1, bound=1e-3)
    scores = GradientNorm()(bounded[None]).numpy().round(6)
    assert leak_auc(scores, labels) == pytest.approx(0.5, abs=0.1)


def test_even_labels_do_not_show_in_lengths() -> None:
    gradients, labels = classifier_gradients(2000, 0.5)
    assert abs(leak_auc(GradientNorm()(gradients[None]).numpy(), labels) - 0.5) < 0.1


def test_one_epoch_is_the_papers_score_and_epochs_count_alike() -> None:
    gradients = torch.randn(2, 5, 3, generator=stream(0), dtype=torch.float64)
    gradients[1] *= 1e-6  # a later epoch, with shorter gradients
    lengths = [[sum(float(x) ** 2 for x in row) ** 0.5 for row in epoch] for epoch in gradients]
    expected = [sum(epoch[i] / (sum(epoch) / 5) for epoch in lengths) / 2 for i in range(5)]
    assert GradientNorm()(gradients).tolist() == pytest.approx(expected)
    alone = GradientNorm()(gradients[:1])
    assert alone.argsort().tolist() == torch.tensor(lengths[0]).argsort().tolist()
    assert GradientNorm()(torch.zeros(1, 2, 3)).tolist() == [0, 0]


@pytest.mark.parametrize(
    "gradients", [torch.zeros(2, 3), torch.zeros(0, 2, 3), torch.full((1, 2, 3), torch.inf)]
)
def test_other_gradients_are_refused(gradients) -> None:
    with pytest.raises(ValueError, match="gradients need shape"):
        GradientNorm()(gradients)
