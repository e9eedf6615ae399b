"""Initial weights that depend on one named random stream and on nothing else."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def initialised(construct: Callable[[], ModuleT], rng: torch.Generator) -> ModuleT:
    """Returns ``construct()``, a module on the CPU whose initial weights depend only on ``rng``.

    torch's layers draw from the process's CPU generator. It is seeded here with one draw from
    ``rng`` and afterwards put back as it was; the generators of other devices stay untouched.

    Args:
        construct: Builds the module; called once.
        rng: Advanced by one draw, whatever the size of the module.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return construct()
