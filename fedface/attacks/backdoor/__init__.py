"""Backdoor attacks: what malicious clients train, and what they send, one attack per module."""

from typing import Annotated

from pydantic import Field

from fedface.attacks.backdoor.attack import Backdoor
from fedface.attacks.backdoor.model_replacement import ModelReplacement
from fedface.attacks.backdoor.poisoning import Poisoning

AnyBackdoor = Annotated[ModelReplacement | Poisoning, Field(discriminator="name")]
"""Every backdoor a YAML file can name. Adding one is adding its class to this line."""

__all__ = ["AnyBackdoor", "Backdoor", "ModelReplacement", "Poisoning"]
