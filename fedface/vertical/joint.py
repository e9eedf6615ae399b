"""The active party's model: own features and noisy embeddings to one joint embedding."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class JointModel(nn.Module):
    """top([own(x_0), post_1(z_1), ..., post_K(z_K)]), and the head that trains it.

    Attributes:
        own: The bottom model of the own view, or None.
        posts: One post-processing per passive party.
        substitutes: What stands in for a missing embedding, one per passive party.
        distributions: The losses on noisy embeddings, one per passive party, or none at all.
        top: Concatenation -> ``(batch, embedding_size)``.
        head: Joint embeddings and labels -> logits.
    """

    def __init__(
        self,
        own: nn.Module | None,
        posts: Sequence[nn.Module],
        substitutes: Sequence[nn.Module],
        distributions: Sequence[nn.Module],
        top: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.own = own
        self.posts = nn.ModuleList(posts)
        self.substitutes = nn.ModuleList(substitutes)
        self.distributions = nn.ModuleList(distributions)
        self.top = top
        self.head = head

    def forward(
        self, own: Tensor | None, received: Sequence[Tensor | None], records: Tensor
    ) -> Tensor:
        """Returns ``(batch, embedding_size)`` joint embeddings, not of unit length.

        Args:
            own: The own views, or None without an own bottom model.
            received: Party by party ``(batch, dim)``, or None for one that is missing.
            records: ``(batch,)`` int64 which records they are.
        """
        pieces = [] if own is None or self.own is None else [self.own(own)]
        for z, substitute, post in zip(received, self.substitutes, self.posts, strict=True):
            pieces.append(post(substitute(records) if z is None else z))
        joint: Tensor = self.top(torch.cat(pieces, 1))
        return joint

    def distribution_loss(self, received: Sequence[Tensor | None], labels: Tensor) -> Tensor:
        """Returns the mean distribution loss over the parties that are present, or zero."""
        losses = [
            loss(z, labels)
            for z, loss in zip(received, self.distributions, strict=False)
            if z is not None
        ]
        return torch.stack(losses).mean() if losses else torch.zeros((), device=labels.device)


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Returns linear layers from width to width with ReLU between them: input, hidden, output."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
