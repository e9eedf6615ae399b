"""Inversion by a decoder: a network learnt on shadow pictures maps embeddings back to pictures.

He, Zhang, Lee, "Model Inversion Attacks Against Collaborative Inference", ACSAC 2019
(black box, "inverse network"): pairs of picture and embedding of the attacker's own, mean squared
error. Defaults are the authors' (Adam with AMSGrad, learning rate 1e-3 halved every 10 epochs,
epsilon 1e-3, batches of 32, 50 epochs). The network is ours, a linear layer and stride-2 transposed
convolutions, since their cut layers are maps and ours is a vector.

It learns on embeddings with their noise, so it learns to answer a noisy embedding with the mean of
the pictures that may be behind it: at high noise that is the mean face, which is nobody.
"""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedface.attacks.inversion.feature_inversion import (
    FeatureInversion,
    Knowledge,
    Reconstruction,
    check_observed,
)
from fedface.backbones.initialisation import initialised
from fedface.training.local import batches


class Decoder(FeatureInversion):
    """A decoder learnt on shadow pairs.

    Attributes:
        width: Channels of the first map; each doubling of the side halves them, 8 at least.
        epochs: Passes over the shadow pictures.
        batch_size: Pictures per step.
        learning_rate: Of Adam, at the start.
        halve_every: Epochs after which the learning rate is halved.
    """

    name: Literal["decoder"] = "decoder"
    width: PositiveInt = 128
    epochs: PositiveInt = 50
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3
    halve_every: PositiveInt = 10

    def __call__(
        self, observed: Tensor, knowledge: Knowledge, rng: torch.Generator
    ) -> Reconstruction:
        """Returns the decoder's pictures; the mismatch is unknown (None).

        Arguments as for every attack on features; the encoder is not used.

        Raises:
            ValueError: If there are no shadow pictures, their size is no multiple of 4, or
                ``observed`` does not fit.
        """
        knowledge.require_shadow("a decoder")
        dim = knowledge.embeddings.shape[1]
        check_observed(observed, dim)
        unit = knowledge.embeddings.square().mean().sqrt().clamp(min=1e-30)
        network = initialised(lambda: decoder(dim, knowledge.size, self.width), rng)
        self._train(network, knowledge.embeddings / unit, knowledge.images, rng)
        with torch.no_grad():
            return Reconstruction(network(observed / unit), None)

    def _train(self, network: nn.Module, z: Tensor, images: Tensor, rng: torch.Generator) -> None:
        optimizer = torch.optim.Adam(
            network.parameters(), lr=self.learning_rate, eps=1e-3, amsgrad=True
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.halve_every, gamma=0.5)
        network.train()
        for _ in range(self.epochs):
            for index in batches(len(z), self.batch_size, rng):
                loss = functional.mse_loss(network(z[index]), images[index])
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
            schedule.step()
        network.eval()


def decoder(dim: int, size: int, width: int) -> nn.Sequential:
    """Returns a network ``(n, dim) -> (n, 3, size, size)`` in [-1, 1].

    A linear layer to a map of side 4 (or size / 2^k between 4 and 7), then doublings.

    Raises:
        ValueError: If no doubling of a side of 4..7 gives ``size``.
    """
    side, n_doublings = size, 0
    while side >= 8 and side % 2 == 0:
        side, n_doublings = side // 2, n_doublings + 1
    if not 4 <= side <= 7 or n_doublings < 1:
        raise ValueError(f"a decoder needs a size of 4..7 times a power of two, got {size}")
    channels = [max(8, width >> step) for step in range(n_doublings)]
    layers: list[nn.Module] = [
        nn.Linear(dim, width * side * side),
        nn.Unflatten(1, (width, side, side)),
        nn.ReLU(),
    ]
    for n_in, n_out in zip(channels, [*channels[1:], 0], strict=True):
        layers.append(nn.ConvTranspose2d(n_in, n_out or 3, 4, stride=2, padding=1))
        layers += [nn.GroupNorm(1, n_out), nn.ReLU()] if n_out else [nn.Tanh()]
    return nn.Sequential(*layers)
