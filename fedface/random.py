"""Independent random streams, each named by what it is for."""

import hashlib
from operator import index

import numpy as np
import torch


def _digest(seed: int, purpose: tuple[int | str, ...]) -> int:
    # index() makes numpy's integers plain ones, whose repr would name another stream.
    names = (name if isinstance(name, str) else index(name) for name in purpose)
    digest = hashlib.sha256(repr((index(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def stream(seed: int, *purpose: int | str) -> torch.Generator:
    """Returns a generator that depends only on ``seed`` and ``purpose``.

    For example ``stream(seed, "local training", server_round, client)``: the draw stays the same
    whichever worker makes it, in whatever order the clients run.
    """
    return torch.Generator().manual_seed(_digest(seed, purpose))


def numpy_stream(seed: int, *purpose: int | str) -> np.random.Generator:
    """Returns the numpy counterpart of :func:`stream`: the same rule, another bit generator."""
    return np.random.default_rng(_digest(seed, purpose))
