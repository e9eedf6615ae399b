"""Heads: embeddings and identities to logits, one loss per module; the trainer adds cross entropy.

Each is a frozen config with ``build(embedding_size, n_identities, rng) -> nn.Module``; the module
maps ``(batch, d)`` embeddings and ``(batch,)`` int64 labels to ``(batch, n_identities)`` logits.
"""

from typing import Annotated

from pydantic import Field

from fedface.heads.arcface import ArcFace
from fedface.heads.cosface import CosFace
from fedface.heads.softmax import Softmax

AnyHead = Annotated[ArcFace | CosFace | Softmax, Field(discriminator="name")]
"""Every head a YAML file can name. Adding one is adding its class to this line."""

__all__ = ["AnyHead", "ArcFace", "CosFace", "Softmax"]
