"""Labels from the length of returned gradients: the norm attack of a passive party.

Li et al., "Label Leakage and Protection in Two-party Split Learning", ICLR 2022 (arXiv 2102.08504):
where one of two labels is rare the model is less sure of it, so records with that label get longer
gradients. The score is the length itself; the paper reports the area under its ROC curve (``leak
AUC``). No label needs to be known. It says nothing where labels are many and even.
"""

from typing import Literal

import torch
from torch import Tensor

from fedface.config import Config


class GradientNorm(Config):
    """Score of the rare label: the gradient's length, relative to its epoch's mean.

    The paper judges a batch at a time. Of several epochs we take the mean, each in units of its own
    mean length, since gradients shrink as the model learns.
    """

    name: Literal["gradient_norm"] = "gradient_norm"

    def __call__(self, gradients: Tensor) -> Tensor:
        """Returns ``(n,)`` float64 scores, higher for the rare label.

        Args:
            gradients: ``(n_epochs, n, dim)`` dL / dz of each record in each epoch.

        Raises:
            ValueError: If the shape differs or a value is not finite.
        """
        check_gradients(gradients)
        lengths = gradients.double().norm(dim=2)
        relative: Tensor = lengths / lengths.mean(1, keepdim=True).clamp(min=1e-300)
        return relative.mean(0)


def check_gradients(gradients: Tensor) -> None:
    """Checks that ``gradients`` are ``(n_epochs >= 1, n >= 1, dim)`` and finite.

    Raises:
        ValueError: If not.
    """
    if gradients.ndim != 3 or min(gradients.shape) < 1 or not bool(torch.isfinite(gradients).all()):
        raise ValueError(
            "gradients need shape (n_epochs >= 1, n >= 1, dim >= 1) and finite values, "
            f"got {tuple(gradients.shape)}"
        )
