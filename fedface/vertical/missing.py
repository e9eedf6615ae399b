"""What stands in for an embedding that did not arrive, because its party dropped out of a step.

All of it is post-processing of what had been released: free.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Missing = Literal["zeros", "mean", "last"]
"""``zeros``; the ``mean`` of the party's embeddings so far; the ``last`` of that very record, or
the mean for records that were never received."""


class Substitutes(nn.Module):
    """Remembers one party's embeddings as far as the policy needs; all of it is saved as buffers.

    Attributes:
        total: ``(dim,)`` float64 sum of the embeddings received.
        count: How many.
        last: ``(n_records, dim)`` the last of each record; no rows under other policies.
        received: ``(n_records,)`` whether there is one.
    """

    total: Tensor
    count: Tensor
    last: Tensor
    received: Tensor

    def __init__(self, policy: Missing, dim: int, n_records: int) -> None:
        super().__init__()
        rows = n_records if policy == "last" else 0
        self.policy = policy
        self.register_buffer("total", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(rows, dim))
        self.register_buffer("received", torch.zeros(rows, dtype=torch.bool))

    @torch.no_grad()
    def remember(self, z: Tensor, records: Tensor) -> None:
        """Takes note of embeddings ``(batch, dim)`` of ``(batch,)`` records."""
        self.total.add_(z.double().sum(0))
        self.count.add_(len(z))
        if self.policy == "last":
            self.last[records] = z.to(self.last)
            self.received[records] = True

    def forward(self, records: Tensor) -> Tensor:
        """Returns ``(batch, dim)`` float32 stand-ins for ``records``, without a gradient."""
        shape = (len(records), len(self.total))
        if self.policy == "zeros":
            return torch.zeros(shape, device=self.total.device)
        mean = (self.total / self.count.clamp(min=1)).float().expand(shape)
        if self.policy == "mean":
            return mean.clone()
        return torch.where(self.received[records, None], self.last[records], mean)
