"""Labels from the direction of returned gradients: the cosine attack of a passive party.

Li et al., "Label Leakage and Protection in Two-party Split Learning", ICLR 2022 (arXiv 2102.08504):
gradients of records with one label point the same way, of another label away from it. The paper has
two labels and the gradient of one known positive; here a few records of every label are known, and
a record gets the label whose known gradients it is most alike.

The length of gradients plays no part, so bounding it (``ActiveSettings.max_gradient_norm``) does
not help; noise on the embeddings does not either, since the active party sees it and answers for
the true label.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedface.attacks.inversion.gradient_norm import check_gradients
from fedface.config import Config


class GradientDirection(Config):
    """Score of a label: mean cosine to the known gradients of that label, over all epochs."""

    name: Literal["gradient_direction"] = "gradient_direction"

    def __call__(self, gradients: Tensor, known: Tensor, labels: Tensor) -> Tensor:
        """Returns ``(n, n_labels)`` float64 scores in [-1, 1], label by label.

        Args:
            gradients: ``(n_epochs, n, dim)`` dL / dz of each record in each epoch. A zero gradient
                is like nothing.
            known: ``(n_known,)`` int64 places of the records whose label is known.
            labels: ``(n_known,)`` int64 their labels, 0..n_labels - 1, each at least once.

        Raises:
            ValueError: If a shape differs, a value is not finite, or a label has no known record.
        """
        check_gradients(gradients)
        n_labels = check_known(known, labels, gradients.shape[1])
        unit = functional.normalize(gradients.double(), dim=2, eps=1e-300)
        cosines = (unit @ unit[:, known].transpose(1, 2)).mean(0)  # (n, n_known)
        share = functional.one_hot(labels, n_labels).double()
        return cosines @ (share / share.sum(0))


def check_known(known: Tensor, labels: Tensor, n: int) -> int:
    """Checks the known records of a label attack, and returns the number of labels.

    Raises:
        ValueError: If the shapes differ, a place is outside 0..n - 1 or stands twice, or one of
            the labels 0..max has no record.
    """
    if known.ndim != 1 or known.shape != labels.shape or len(known) < 1:
        raise ValueError(
            "known records and labels need one shape (n_known >= 1,), "
            f"got {tuple(known.shape)} and {tuple(labels.shape)}"
        )
    if int(known.min()) < 0 or int(known.max()) >= n or len(torch.unique(known)) < len(known):
        raise ValueError(f"known records need to be different places in 0..{n - 1}, got others")
    n_labels = int(labels.max()) + 1
    found = len(torch.unique(labels))
    if int(labels.min()) < 0 or found < n_labels:
        raise ValueError(
            f"every label 0..{n_labels - 1} needs a known record, got {found} labels with one"
        )
    return n_labels
