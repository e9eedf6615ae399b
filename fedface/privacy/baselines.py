"""Ways of sharing embeddings without a guarantee: what the protected ones are compared with."""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from fedface.config import Config
from fedface.privacy.clipping import ClipNorm, check_rows, clip, standard_normal


class UnclippedNoise(Config):
    """Noise without a clip: a baseline without any guarantee, since nothing bounds an embedding.

    Attributes:
        sigma: Standard deviation of the noise per coordinate.
    """

    name: Literal["unclipped_noise"] = "unclipped_noise"
    sigma: PositiveFloat

    @property
    def bound(self) -> None:
        """None: an embedding may have any length."""

    @property
    def noise(self) -> float:
        """The standard deviation of the noise per coordinate."""
        return self.sigma

    def release(self, h: Tensor, rng: torch.Generator) -> Tensor:
        """Returns ``h + N(0, sigma^2 I)``; arguments and errors as for a gaussian release."""
        check_rows(h)
        return h + self.sigma * standard_normal(h, rng)

    def ledger(self, n_records: int) -> None:
        """Returns None: there is nothing to account."""

    def statement(self) -> str:
        """Returns that there is no guarantee."""
        return (
            f"No differential privacy: Gaussian noise of standard deviation sigma={self.sigma:g} "
            "on embeddings of any length; without a clip no noise bounds what a record reveals."
        )


class Unprotected(Config):
    """Raw embeddings, exactly: the upper baseline.

    Attributes:
        clip: C, to see what the clip alone costs; None sends embeddings as they are.
    """

    name: Literal["none"] = "none"
    clip: ClipNorm | None = None

    @property
    def bound(self) -> float | None:
        """C, or None: an embedding may have any length."""
        return self.clip

    @property
    def noise(self) -> float:
        """Zero."""
        return 0.0

    def release(self, h: Tensor, rng: torch.Generator) -> Tensor:
        """Returns ``h``, clipped if ``clip`` is set, without a draw; errors as ``clip``."""
        if self.clip is not None:
            return clip(h, self.clip)
        check_rows(h)
        return h

    def ledger(self, n_records: int) -> None:
        """Returns None: there is nothing to account."""

    def statement(self) -> str:
        """Returns that there is no protection."""
        return "No protection: the active party receives the passive parties' embeddings exactly."
