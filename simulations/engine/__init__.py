"""Engines that carry messages between the server and the clients."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from simulations.engine.flower import FlowerEngine
from simulations.engine.in_process import InProcessEngine
from simulations.engine.resident import ResidentEngine


def _name(value: Any) -> str:
    """The engine's name; settings without one are those of Flower's, the default."""
    name = value.get("name", "flower") if isinstance(value, dict) else value.name
    return str(name)


AnyEngine = Annotated[
    Annotated[FlowerEngine, Tag("flower")]
    | Annotated[InProcessEngine, Tag("in_process")]
    | Annotated[ResidentEngine, Tag("resident")],
    Discriminator(_name),
]
"""Every engine a YAML file can name."""

__all__ = ["AnyEngine", "FlowerEngine", "InProcessEngine", "ResidentEngine"]
