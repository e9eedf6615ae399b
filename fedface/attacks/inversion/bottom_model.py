"""The bottom model that inversion by optimisation runs through: the true one, or a shadow of it.

The true one is the worst case: a passive party that lent its model out, or got it from the active
party. The shadow is the query-free attack of He, Zhang, Lee, "Model Inversion Attacks Against
Collaborative Inference", ACSAC 2019: train a stand-in, then invert it. Theirs learns from the later
layers' labels; ours from the released embeddings of the attacker's own shadow pictures, which an
active party has as soon as it enrols people of its own.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedface.attacks.inversion.feature_inversion import Encoder, Knowledge
from fedface.backbones import AnyBackbone, SmallConv
from fedface.backbones.initialisation import initialised
from fedface.config import Config
from fedface.training.local import batches


class KnownBottom(Config):
    """The true bottom model, scale and clip, from ``Knowledge.encoder``."""

    name: Literal["known"] = "known"

    def encoder(self, knowledge: Knowledge, rng: torch.Generator) -> Encoder:
        """Returns the encoder of ``knowledge``.

        Raises:
            ValueError: If there is none.
        """
        if knowledge.encoder is None:
            raise ValueError("inversion of a known bottom model needs Knowledge.encoder, got None")
        return knowledge.encoder


class ShadowBottom(Config):
    """A network trained to give the shadow pictures the embeddings that were released of them.

    Attributes:
        backbone: Its architecture; a linear layer behind it gives the observed dimension.
        epochs: Passes over the shadow pictures.
        batch_size: Pictures per step.
        learning_rate: Of Adam.
    """

    name: Literal["shadow"] = "shadow"
    backbone: AnyBackbone = Field(default_factory=lambda: SmallConv(embedding_size=64))
    epochs: PositiveInt = 50
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3

    def encoder(self, knowledge: Knowledge, rng: torch.Generator) -> Encoder:
        """Returns the trained shadow, in evaluation mode.

        Raises:
            ValueError: If there are less than two shadow pictures.
        """
        knowledge.require_shadow("a shadow bottom model")
        dim = knowledge.embeddings.shape[1]
        backbone = self.backbone.build(knowledge.size, rng)
        last = initialised(lambda: nn.Linear(self.backbone.embedding_size, dim), rng)
        shadow = nn.Sequential(backbone, last)
        fit(shadow, knowledge.images, knowledge.embeddings, self, rng)
        return shadow


AnyBottom = Annotated[KnownBottom | ShadowBottom, Field(discriminator="name")]
"""Every bottom model that an inversion can run through."""


def fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    settings: ShadowBottom,
    rng: torch.Generator,
) -> None:
    """Trains ``model`` by Adam to map ``inputs`` to ``targets``, and leaves it frozen.

    The mean squared error counts in units of the targets' mean square, so that a clip of another
    length changes nothing.

    Args:
        model: Trained in place.
        inputs: ``(n >= 2, ...)``.
        targets: ``(n, dim)``.
        settings: Epochs, batch size and learning rate.
        rng: Orders the batches.
    """
    unit = targets.square().mean().clamp(min=1e-30)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    model.train()
    for _ in range(settings.epochs):
        for index in batches(len(inputs), settings.batch_size, rng):
            loss = functional.mse_loss(model(inputs[index]), targets[index]) / unit
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
    model.eval()
    model.requires_grad_(False)
