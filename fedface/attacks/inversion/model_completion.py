"""Labels from the passive party's own bottom model, completed with a few known labels.

Fu et al., "Label Inference Attacks Against Vertical Federated Learning", USENIX Security 2022
(the passive attack, model completion): training taught the bottom model what tells labels apart; an
inference head on it, trained on few labelled and many unlabelled records by MixMatch (Berthelot et
al., NeurIPS 2019, here without augmentation, as in the authors' code), finds the rest. No gradient
is needed any more, so nothing that protects gradients helps, and it works on new records too.
Compare with the same attack on an untrained bottom model: that is what the few labels are worth by
themselves.

Defaults are those of https://github.com/FuChong-cyber/label-inference-attacks (Adam 2e-3, batches
of 16, 10 epochs of 1024 steps, alpha 0.75, lambda_u 50 rising from 0 over all steps, T 0.8, moving
average 0.999, weight decay 0.02 times the learning rate; batch normalisation and ReLU before the
one linear layer). Where we differ: batches are drawn with replacement, so fewer labels than a batch
are allowed; the linear layer begins with torch's own weights and not with ones.
"""

from copy import deepcopy
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedface.attacks.inversion.gradient_direction import check_known
from fedface.backbones.initialisation import initialised
from fedface.config import Config


class ModelCompletion(Config):
    """An inference head on the own bottom model.

    Attributes:
        epochs: Times ``steps_per_epoch`` steps are taken.
        steps_per_epoch: See ``epochs``; only the product matters.
        batch_size: Labelled records per step, and as many unlabelled ones.
        learning_rate: Of Adam.
        alpha: Of the Beta distribution that records are mixed by.
        unlabelled_weight: lambda_u at the end.
        temperature: T, below 1 sharpens the guessed labels.
        averaging: What the moving average of the weights keeps with each step; with few steps a
            value near 1 leaves the head where it began, so lower it.
        freeze_bottom: Whether the head alone is trained, as in the authors' runs on tables.
    """

    name: Literal["model_completion"] = "model_completion"
    epochs: PositiveInt = 10
    steps_per_epoch: PositiveInt = 1024
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 2e-3
    alpha: PositiveFloat = 0.75
    unlabelled_weight: NonNegativeFloat = 50.0
    temperature: PositiveFloat = 0.8
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.999
    freeze_bottom: bool = False

    def __call__(
        self,
        bottom: nn.Module,
        dim: int,
        images: Tensor,
        known: Tensor,
        labels: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Returns ``(n, n_labels)`` float32 logits for all records.

        Args:
            bottom: The party's bottom model; a copy is trained, it stays as it is.
            dim: Numbers that it gives per record.
            images: ``(n, ...)`` the party's own features, labelled or not.
            known: ``(n_known,)`` int64 places of the records whose label is known.
            labels: ``(n_known,)`` int64 their labels, 0..n_labels - 1, each at least once.
            rng: Draws the head, the batches and the mixtures.

        Raises:
            ValueError: If a shape differs or a label has no known record.
        """
        n_labels = check_known(known, labels, len(images))
        head = initialised(
            lambda: nn.Sequential(nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, n_labels)), rng
        )
        model = nn.Sequential(deepcopy(bottom), head).requires_grad_(True)
        model[0].requires_grad_(not self.freeze_bottom)
        average = deepcopy(model).requires_grad_(False).eval()
        targets = functional.one_hot(labels, n_labels).float()
        self._train(model.train(), average, images, known, targets, rng)
        with torch.no_grad():
            return torch.cat([average(part) for part in torch.split(images, 256)])

    def _train(
        self,
        model: nn.Module,
        average: nn.Module,
        images: Tensor,
        known: Tensor,
        targets: Tensor,
        rng: torch.Generator,
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        draws = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
        hidden = torch.ones(len(images), dtype=torch.bool)
        hidden[known] = False
        unknown = hidden.nonzero().flatten() if bool(hidden.any()) else known
        n_steps = self.epochs * self.steps_per_epoch
        for step in range(n_steps):
            chosen = torch.randint(len(known), (self.batch_size,), generator=rng)
            other = torch.randint(len(unknown), (self.batch_size,), generator=rng)
            x = torch.cat([images[known[chosen]], images[unknown[other]]])
            y = torch.cat([targets[chosen], self._guess(model, images[unknown[other]])])
            share = float(draws.beta(self.alpha, self.alpha))
            x, y = mixed(x, y, max(share, 1 - share), rng)
            weight = self.unlabelled_weight * step / n_steps
            loss = semi_supervised_loss(model(x), y, self.batch_size, weight)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            self._follow(model, average)

    def _guess(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's own labels, sharpened."""
        with torch.no_grad():
            return sharpened(model(images).softmax(1), self.temperature)

    @torch.no_grad()
    def _follow(self, model: nn.Module, average: nn.Module) -> None:
        """Moves the average, then lets the weights decay."""
        for name, value in average.state_dict().items():
            new = model.state_dict()[name]
            if value.is_floating_point():
                value.lerp_(new, 1 - self.averaging)
            else:
                value.copy_(new)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.mul_(1 - 0.02 * self.learning_rate)


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """Returns p^(1 / T), rows summing to one: MixMatch, equation 7."""
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def mixed(x: Tensor, y: Tensor, share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns ``share`` of each row plus the rest of another row, drawn without replacement."""
    order = torch.randperm(len(x), generator=rng)
    return share * x + (1 - share) * x[order], share * y + (1 - share) * y[order]


def semi_supervised_loss(logits: Tensor, targets: Tensor, n_labelled: int, weight: float) -> Tensor:
    """Returns the cross entropy of the first ``n_labelled`` rows plus ``weight`` times the mean
    squared error of the others' probabilities: MixMatch, equations 3 to 5.
    """
    known = -(targets[:n_labelled] * logits[:n_labelled].log_softmax(1)).sum(1).mean()
    others = (logits[n_labelled:].softmax(1) - targets[n_labelled:]).square().mean()
    return known + weight * others
