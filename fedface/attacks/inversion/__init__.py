"""Attacks on what vertical parties send each other, to measure protections with.

The active party attacks features and membership (embeddings arrive there), the passive parties
attack labels (gradients and a trained bottom model stay there). Report both directions: what makes
embeddings tell more about labels helps against the one and the other way round.
"""

from typing import Annotated

from pydantic import Field

from fedface.attacks.inversion.decoder import Decoder
from fedface.attacks.inversion.feature_inversion import (
    FeatureInversion,
    Knowledge,
    Reconstruction,
)
from fedface.attacks.inversion.gradient_direction import GradientDirection
from fedface.attacks.inversion.gradient_norm import GradientNorm
from fedface.attacks.inversion.membership import Membership
from fedface.attacks.inversion.model_completion import ModelCompletion
from fedface.attacks.inversion.optimisation import Optimisation

AnyFeatureInversion = Annotated[Decoder | Optimisation, Field(discriminator="name")]
"""Every attack on features that a YAML file can name."""

AnyLabelInference = Annotated[
    GradientDirection | GradientNorm | ModelCompletion, Field(discriminator="name")
]
"""Every attack on labels that a YAML file can name."""

__all__ = [
    "AnyFeatureInversion",
    "AnyLabelInference",
    "Decoder",
    "FeatureInversion",
    "GradientDirection",
    "GradientNorm",
    "Knowledge",
    "Membership",
    "ModelCompletion",
    "Optimisation",
    "Reconstruction",
]
