"""The plain softmax head: a linear layer with bias, no normalisation, scale or margin.

The baseline of every margin loss (Deng et al., CVPR 2019, equation 1). It separates the training
identities, but asks for no gap between them, and its logits depend on the embeddings' length.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedface.config import Config
from fedface.heads.classes import at_labels, check_inputs, class_weights


class SoftmaxHead(nn.Module):
    """Linear logits.

    Attributes:
        weight: ``(n_identities, d)``.
        bias: ``(n_identities,)``, zero at the start.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits for the cross entropy; the inputs stay as they are.

        Args:
            embeddings: ``(batch, d)``.
            labels: ``(batch,)`` int64 in 0..n_identities - 1; checked, and otherwise unused.

        Returns:
            ``(batch, n_identities)`` logits, in the precision of ``weight`` also under autocast.

        Raises:
            ValueError: If a shape or type differs, or (on the CPU) a label is out of range.
        """
        check_inputs(embeddings, labels, self.weight.shape[1])
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = F.linear(embeddings.to(self.weight.dtype), self.weight, self.bias)
        at_labels(logits, labels)
        return logits


class Softmax(Config):
    """The plain softmax head; nothing to set."""

    name: Literal["softmax"] = "softmax"

    def build(self, embedding_size: int, n_identities: int, rng: torch.Generator) -> nn.Module:
        """Returns a new head for ``n_identities`` identities; ``rng`` fixes its weights.

        Raises:
            ValueError: If ``n_identities`` or ``embedding_size`` is below 1.
        """
        return SoftmaxHead(class_weights(n_identities, embedding_size, rng))
