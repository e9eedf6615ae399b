"""Screening of one client's reply: what is malformed is refused by name, never repaired.

Stock federated averaging dies of a wrong shape, turns NaN with one NaN client and lets a client
that claims a billion images rule; each is refused here before any aggregator sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import float_info

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor

from fedface.config import Config
from fedface.parameters import Layout

Values = NDArray[np.generic] | Tensor
"""What a client sent: an array, which is copied, or a tensor, which is used as it lies there."""


class InvalidReply(ValueError):
    """A client's reply cannot be used; the message says what was needed and what was found."""


class ReplyLimits(Config):
    """What a client may claim; anything beyond is absurd and drops the reply."""

    max_examples: PositiveInt = 10_000_000
    max_steps: PositiveInt = 1_000_000


@dataclass(frozen=True)
class ClientUpdate:
    """One client's valid reply.

    Attributes:
        client: The client's partition id.
        delta: ``(dim,)`` float32, local weights minus global weights.
        buffers: Batch statistics and counters by name; they travel apart from the weights.
        n_examples: Training images claimed.
        n_steps: Optimiser steps claimed.
        loss: Mean local training loss.
    """

    client: int
    delta: Tensor
    buffers: dict[str, Tensor]
    n_examples: int
    n_steps: int
    loss: float


def screen(
    client: int,
    arrays: Mapping[str, Values],
    buffers: Mapping[str, Values],
    metrics: Mapping[str, object],
    layout: Layout,
    expected_buffers: Mapping[str, Tensor],
    limits: ReplyLimits,
) -> ClientUpdate:
    """Returns the reply as a ClientUpdate.

    Args:
        client: The client's partition id.
        arrays: Parameter name -> update of that parameter. Tensors that lie one behind the other in
            the layout's order become the update without a copy.
        buffers: Buffer name -> local value.
        metrics: Must hold ``num-examples``, ``num-steps`` and ``loss``.
        layout: The names and shapes that ``arrays`` must have.
        expected_buffers: The global model's buffers: names, shapes and dtypes.
        limits: The largest counts that are believed.

    Raises:
        InvalidReply: For missing or extra keys, wrong shapes or dtypes, values that are not
            finite, negative batch variances, counters that ran back or too far, and counts that
            are no integers in 1..limit.
    """
    _require_names("arrays", set(arrays), {slot.name for slot in layout.slots})
    _require_names("buffers", set(buffers), set(expected_buffers))
    deltas = {
        slot.name: _tensor(f"arrays[{slot.name}]", arrays[slot.name], slot.shape, torch.float32)
        for slot in layout.slots
    }
    statistics = {
        name: _tensor(f"buffers[{name}]", buffers[name], tuple(like.shape), like.dtype)
        for name, like in expected_buffers.items()
    }
    for name, values in statistics.items():
        if name.endswith("running_var") and bool((values < 0).any()):
            raise InvalidReply(f"buffers[{name}] needs variances >= 0, got {values.min().item():g}")
        if name.endswith("num_batches_tracked"):
            _require_counter(f"buffers[{name}]", values, expected_buffers[name], limits.max_steps)
    return ClientUpdate(
        client=client,
        delta=layout.joined(deltas),
        buffers=statistics,
        n_examples=_count(metrics, "num-examples", limits.max_examples),
        n_steps=_count(metrics, "num-steps", limits.max_steps),
        loss=_finite(metrics, "loss"),
    )


def shortened(text: str, limit: int = 120) -> str:
    """Returns at most ``limit`` characters of a text that a client wrote, on one line.

    Only printable characters are left: a client cannot colour, move or hide what a terminal shows.
    """
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    line = " ".join(printable.split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 3] + "..."


def _require_names(field: str, found: set[str], needed: set[str]) -> None:
    if missing := sorted(needed - found):
        raise InvalidReply(
            f"{field} lacks {shortened(', '.join(missing[:3]))} ({len(missing)} missing)"
        )
    if extra := sorted(found - needed):
        raise InvalidReply(
            f"{field} has unknown {shortened(', '.join(extra[:3]))} ({len(extra)} extra)"
        )


def _tensor(field: str, values: Values, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    needed = dtype if isinstance(values, Tensor) else torch.empty(0, dtype=dtype).numpy().dtype
    if values.dtype != needed:
        raise InvalidReply(f"{field} needs dtype {needed}, got {values.dtype}")
    if tuple(values.shape) != shape:
        raise InvalidReply(f"{field} needs shape {shape}, got {tuple(values.shape)}")
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if not all_finite(tensor):
        raise InvalidReply(f"{field} needs finite values, got NaN or infinity")
    return tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: else the sum would not be finite either.

    The sum of finite values may overflow; then each is looked at, at 20 times the cost.
    """
    if not values.is_floating_point():
        return True
    return bool(values.sum().isfinite()) or bool(torch.isfinite(values).all())


def _require_counter(field: str, values: Tensor, before: Tensor, max_steps: int) -> None:
    """A counter of batches goes on from the global one; else one client could make it overflow."""
    grown = values - before
    if bool((grown < 0).any()) or bool((grown > max_steps).any()):
        raise InvalidReply(
            f"{field} needs {before.max().item()} and at most {max_steps} more, got "
            f"{values.max().item()}"
        )


def _count(metrics: Mapping[str, object], name: str, limit: int) -> int:
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise InvalidReply(f"metrics[{name}] needs an integer in 1..{limit}, got {_shown(value)}")
    return value


def _finite(metrics: Mapping[str, object], name: str) -> float:
    value = metrics.get(name)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is not None and abs(number) <= float_info.max:
        return float(number)
    raise InvalidReply(f"metrics[{name}] needs a finite number, got {_shown(value)}")


def _shown(value: object) -> str:
    """What a client sent, in few characters whatever it is."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return repr(value) if bits <= 64 else f"an integer of {bits} bits"
    return f"a {type(value).__name__}"
