"""Triggers: fixed changes of a face image that a backdoor answers to, one per module."""

from typing import Annotated

from pydantic import Field

from fedface.attacks.triggers.glasses import Glasses
from fedface.attacks.triggers.patch import Patch
from fedface.attacks.triggers.trigger import Trigger

AnyTrigger = Annotated[Glasses | Patch, Field(discriminator="name")]
"""Every trigger a YAML file can name. Adding one is adding its class to this line."""

__all__ = ["AnyTrigger", "Glasses", "Patch", "Trigger"]
