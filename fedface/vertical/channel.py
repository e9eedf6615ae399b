"""What the active party may expect of a passive party's embeddings, and what it refuses by name."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TAIL = 30.0
"""A row longer than its bound allows is refused; honest noise reaches it once in exp(30)."""


@dataclass(frozen=True)
class Channel:
    """What the active party knows of one passive party: public facts of its release.

    Attributes:
        party: Its name.
        dim: d.
        bound: C, or None when nothing bounds its embeddings.
        sigma: The noise per coordinate.
    """

    party: str
    dim: int
    bound: float | None
    sigma: float

    def check(self, z: Tensor, n: int) -> None:
        """Refuses embeddings that an honest party would not send.

        A row of u + N(0, sigma^2 I) with ||u|| <= C is longer than C + sigma (sqrt(d) + sqrt(2 t))
        with probability at most exp(-t), t = 30 here: longer rows were not clipped.

        Args:
            z: What was received.
            n: Rows that were asked for.

        Raises:
            ValueError: Names the party, what was needed and what was found.
        """
        if z.shape != (n, self.dim) or not z.is_floating_point():
            raise ValueError(
                f"party {self.party} needs to send floats of shape ({n}, {self.dim}), "
                f"got {tuple(z.shape)} {z.dtype}"
            )
        if not bool(torch.isfinite(z).all()):
            bad = int((~torch.isfinite(z)).any(1).sum())
            raise ValueError(
                f"party {self.party} needs to send finite embeddings, got {bad} rows of {n} that "
                "are not"
            )
        if self.bound is None or n == 0:
            return
        reach = self.sigma * (math.sqrt(self.dim) + math.sqrt(2 * _TAIL))
        limit = (self.bound + reach) * (1 + 1e-5)
        longest = float(z.double().norm(dim=1).max())
        if longest > limit:
            raise ValueError(
                f"party {self.party} needs to send embeddings clipped at {self.bound:g} under "
                f"noise of {self.sigma:.4g}, at most {limit:.6g} long, got one of {longest:.6g}"
            )
