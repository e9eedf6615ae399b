"""What every attack on features gets and returns: released embeddings in, pictures out.

The attacker is whoever receives the embeddings of a passive party (the active party, a server, a
partner) and wants its pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedface.config import Config

Encoder = Callable[[Tensor], Tensor]
"""Pictures ``(n, 3, size, size)`` in [-1, 1] -> ``(n, dim)`` embeddings before the noise."""


@dataclass(frozen=True)
class Knowledge:
    """What the attacker has besides the embeddings under attack.

    Attributes:
        size: The side of the pictures.
        encoder: The passive party's bottom model, scale and clip, or None if they are secret.
        images: ``(n_shadow, 3, size, size)`` in [-1, 1], pictures that the attacker happens to
            own; none of them is under attack, and best none of the same people.
        embeddings: ``(n_shadow, dim)`` what the passive party released of these.
    """

    size: int
    encoder: Encoder | None
    images: Tensor
    embeddings: Tensor

    def __post_init__(self) -> None:
        """Checks that there is one embedding per shadow picture."""
        shape = (3, self.size, self.size)
        if (
            self.images.ndim != 4
            or self.images.shape[1:] != shape
            or self.embeddings.ndim != 2
            or len(self.images) != len(self.embeddings)
        ):
            raise ValueError(
                f"knowledge needs shadow images (n, 3, {self.size}, {self.size}) and embeddings "
                f"(n, dim), got {tuple(self.images.shape)} and {tuple(self.embeddings.shape)}"
            )

    def require_shadow(self, attack: str) -> None:
        """Refuses to go on without shadow pictures.

        Raises:
            ValueError: If there are less than two.
        """
        if len(self.images) < 2:
            raise ValueError(
                f"{attack} needs two or more shadow images with embeddings, got {len(self.images)}"
            )


@dataclass(frozen=True)
class Reconstruction:
    """What came back.

    Attributes:
        images: ``(n, 3, size, size)`` in [-1, 1].
        mismatch: ``(n,)`` squared distance between the reconstruction's embedding, as far as the
            attacker can compute it, and the observed one; None where the attack computes none.
    """

    images: Tensor
    mismatch: Tensor | None


class FeatureInversion(Config):
    """An attack on features: ``(observed, knowledge, rng) -> Reconstruction``."""

    def __call__(
        self, observed: Tensor, knowledge: Knowledge, rng: torch.Generator
    ) -> Reconstruction:
        """Returns a picture for each of ``observed``, ``(n, dim)`` released embeddings.

        Args:
            observed: What the passive party released of the pictures under attack.
            knowledge: What else the attacker has.
            rng: Draws whatever the attack draws.

        Raises:
            ValueError: If the attack needs knowledge that there is none of.
        """
        raise NotImplementedError


def check_observed(observed: Tensor, dim: int | None = None) -> None:
    """Checks that ``observed`` is ``(n >= 1, dim)`` and finite.

    Raises:
        ValueError: If not.
    """
    fits = observed.ndim == 2 and len(observed) > 0 and dim in (None, observed.shape[1])
    if not fits or not bool(torch.isfinite(observed).all()):
        raise ValueError(
            f"observed embeddings need shape (n >= 1, {'dim' if dim is None else dim}) and finite "
            f"values, got {tuple(observed.shape)}"
        )
