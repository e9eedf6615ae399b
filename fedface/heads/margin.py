"""Margin heads: scaled cosines to one weight vector per identity, the true one made smaller.

Logits are ``scale * cos(theta_j)`` for the other identities and ``scale * psi(cos(theta_y))`` for
the true one (Deng et al., CVPR 2019, equation 4); the heads differ in psi alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedface.heads.classes import at_labels, check_inputs


def cosines(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Returns cos(theta_j), the cosine between each embedding and each identity's weight vector.

    Args:
        embeddings: ``(batch, d)``, of any length but zero.
        weight: ``(n_identities, d)``, likewise.

    Returns:
        ``(batch, n_identities)`` in [-1, 1] up to rounding, in the precision of ``weight`` also
        under autocast: bfloat16 cannot tell angles below five degrees from zero.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return F.linear(F.normalize(embeddings.to(weight.dtype)), F.normalize(weight))


class MarginHead(nn.Module):
    """Scaled cosines with a margin at the true identity while training, plain ones in eval mode.

    The margin makes training harder; whom a face looks most like is asked without it.

    Attributes:
        weight: ``(n_identities, d)``; only the directions of its rows matter.
        scale: s, the factor on all cosines.
        with_margin: psi, maps the true identity's cosines, ``(batch, 1)``, elementwise.
    """

    def __init__(
        self, weight: nn.Parameter, scale: float, with_margin: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.weight = weight
        self.scale = scale
        self.with_margin = with_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits for the cross entropy; the inputs stay as they are.

        Args:
            embeddings: ``(batch, d)``, not necessarily of unit length.
            labels: ``(batch,)`` int64 in 0..n_identities - 1.

        Returns:
            ``(batch, n_identities)`` logits.

        Raises:
            ValueError: If a shape or type differs, or (on the CPU) a label is out of range.
        """
        check_inputs(embeddings, labels, self.weight.shape[1])
        cosine = cosines(embeddings, self.weight)
        if not self.training:
            at_labels(cosine, labels)
            return self.scale * cosine
        target = self.with_margin(at_labels(cosine, labels))
        return self.scale * cosine.scatter(1, labels[:, None], target)
