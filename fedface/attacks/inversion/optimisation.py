"""Inversion by optimisation: the likeliest picture whose embedding lies near the observed one.

He, Zhang, Lee, "Model Inversion Attacks Against Collaborative Inference", ACSAC 2019 (white box,
regularised maximum likelihood): minimise ||f(x) - z||^2 plus what a prior takes for x, by Adam.
Under Gaussian noise the first term is the exact log-likelihood: nothing is left to be gained from
knowing of the noise.

Defaults are the authors' for a fully connected cut layer (1000 steps, Adam with AMSGrad, learning
rate 0.05, epsilon 1e-3; code at https://github.com/zechenghe/Inverse_Collaborative_Inference).
Where we differ: the distance counts in units of the observed embeddings' mean square, so that a
prior's weight does not depend on the embeddings' scale; pictures are kept in [-1, 1] in every step
and not only at the end; all pictures are optimised side by side, which does not mix them, since
every number has an Adam of its own; and there is a second prior to choose.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from fedface.attacks.inversion.bottom_model import AnyBottom, KnownBottom
from fedface.attacks.inversion.feature_inversion import (
    Encoder,
    FeatureInversion,
    Knowledge,
    Reconstruction,
    check_observed,
)
from fedface.attacks.inversion.image_prior import AnyPrior, Canvas, Smooth


class Optimisation(FeatureInversion):
    """Gradient descent on the picture.

    Attributes:
        bottom: The model it runs through, the true one or a shadow of it.
        prior: Which pictures are likely.
        steps: Of Adam.
        learning_rate: In the units of the prior's numbers (pixels of [-1, 1]).
        batch_size: Pictures that are optimised at once; a matter of memory alone.
    """

    name: Literal["optimisation"] = "optimisation"
    bottom: AnyBottom = Field(default_factory=KnownBottom)
    prior: AnyPrior = Smooth()
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.05
    batch_size: PositiveInt = 64

    def __call__(
        self, observed: Tensor, knowledge: Knowledge, rng: torch.Generator
    ) -> Reconstruction:
        """Returns the pictures found, and how far their embeddings are from the observed ones.

        Arguments as for every attack on features; nothing is drawn with a known bottom model.

        Raises:
            ValueError: If the bottom model is to be known and is not, shadow pictures are needed
                and there are none, or ``observed`` does not fit.
        """
        check_observed(observed)
        encode, canvas = self.bottom.encoder(knowledge, rng), self.prior.build(knowledge)
        unit = float(observed.square().mean().clamp(min=1e-30))
        images, mismatch = [], []
        for z in torch.split(observed, self.batch_size):
            images.append(self._found(z, unit, encode, canvas))
            with torch.no_grad():
                mismatch.append((encode(images[-1]) - z).square().sum(1))
        return Reconstruction(torch.cat(images), torch.cat(mismatch))

    def _found(self, z: Tensor, unit: float, encode: Encoder, canvas: Canvas) -> Tensor:
        """The pictures of one block."""
        code = canvas.start.expand(len(z), *canvas.start.shape).clone().requires_grad_()
        optimizer = torch.optim.Adam([code], lr=self.learning_rate, eps=1e-3, amsgrad=True)
        for _ in range(self.steps):
            distance = (encode(canvas.paint(code)) - z).square().mean(1) / unit
            (code.grad,) = torch.autograd.grad((distance + canvas.cost(code)).sum(), code)
            optimizer.step()
            with torch.no_grad():
                code.copy_(canvas.project(code))
        return canvas.paint(code.detach()).clamp(-1, 1)
