"""Engines that carry messages between the server and the clients."""

from simulations.engine.flower import FlowerEngine

AnyEngine = FlowerEngine
"""Every engine a YAML file can name."""

__all__ = ["AnyEngine", "FlowerEngine"]
