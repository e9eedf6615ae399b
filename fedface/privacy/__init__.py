"""Privacy of what leaves a site: mechanisms, their account, and the sentence that may be said."""

from typing import Annotated

from pydantic import Field

from fedface.privacy.baselines import UnclippedNoise, Unprotected
from fedface.privacy.poisson_binomial import PoissonBinomialRelease
from fedface.privacy.release import BudgetSpent, EmbeddingRelease, Ledger, Spent

AnyRelease = Annotated[
    EmbeddingRelease | PoissonBinomialRelease | UnclippedNoise | Unprotected,
    Field(discriminator="name"),
]
"""Every way of sharing embeddings that a YAML file can name."""

__all__ = [
    "AnyRelease",
    "BudgetSpent",
    "EmbeddingRelease",
    "Ledger",
    "PoissonBinomialRelease",
    "Spent",
    "UnclippedNoise",
    "Unprotected",
]
