"""The large sums of an aggregation on a GPU: blocks of columns go there, results come back.

Off by default: the CPU's threads do them (:mod:`fedface.aggregation.blocks`). Inside
:func:`aggregating_on` inner products, weighted sums, values of ranks and ARIBA's fragments are
worked on there in torch. What is small, and what a rule remembers, stays with the CPU. Results
agree with the CPU's but for rounding; the same device gives the same ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

from fedface.aggregation.blocks import slices

BLOCK = 1 << 25
"""Numbers in a block: 128 MiB in float32."""

_CHOSEN: ContextVar[torch.device | None] = ContextVar("device of the aggregation", default=None)


@contextmanager
def aggregating_on(device: str | torch.device) -> Iterator[None]:
    """Lets aggregators use ``device`` inside.

    Raises:
        ValueError: If it is a GPU and torch sees none.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("aggregation on cuda needs a GPU that torch can use, found none")
    before = _CHOSEN.set(chosen)
    try:
        with _exact_products() if chosen.type == "cuda" else nullcontext():
            yield
    finally:
        _CHOSEN.reset(before)


def chosen_device() -> torch.device | None:
    """Returns where large sums are to be worked on; None for the CPU's threads."""
    return _CHOSEN.get()


def blocks_on(
    device: torch.device, rows: Tensor, dtype: torch.dtype, chosen: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields blocks of columns on ``device``, in order.

    Args:
        device: Where to.
        rows: ``(n, dim)`` in the CPU's memory.
        dtype: Of the blocks.
        chosen: ``(k,)`` int64, which rows; None for all.

    Yields:
        The columns, and ``(k, n_columns)``.
    """
    n = len(rows) if chosen is None else len(chosen)
    for columns in slices(n, rows.shape[1], max(1, BLOCK // max(n, 1))):
        piece = rows[:, columns] if chosen is None else rows[chosen, columns]
        yield columns, piece.to(device).to(dtype)


def gram_on(
    device: torch.device, rows: Tensor, origin: int | None, chosen: Tensor | None, exact: bool
) -> Tensor:
    """Returns what :func:`fedface.aggregation.distances.gram` does."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    dtype = torch.float64 if exact else torch.float32
    for _, block in blocks_on(device, rows, dtype, chosen):
        centred = block if origin is None else block - block[origin]
        total = total + (centred @ centred.T).double()
    return total.cpu()


def products_on(device: torch.device, rows: Tensor, vector: Tensor | None) -> Tensor:
    """Returns what :func:`fedface.aggregation.distances.products_with` does."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=device)
    for columns, block in blocks_on(device, rows, torch.float64):
        other = block if vector is None else vector[columns].to(device).double()
        total += (block * other).sum(dim=1)
    return total.cpu()


def weighted_sum_on(device: torch.device, rows: Tensor, trust: Tensor) -> Tensor:
    """Returns what :func:`fedface.aggregation.weights.weighted_sum` does."""
    used = trust.nonzero().squeeze(1)
    weights, total = trust[used].to(device), torch.empty(rows.shape[1])
    for columns, block in blocks_on(device, rows, torch.float64, used):
        total[columns] = (weights @ block).float().cpu()
    return total


def trimmed_on(device: torch.device, rows: Tensor, n_trimmed: int) -> tuple[Tensor, Tensor]:
    """Returns the mean between the extremes and how many values of each row lie there.

    Args:
        device: Where it is worked on.
        rows: ``(n, dim)``.
        n_trimmed: Values left out at each end.

    Returns:
        ``(dim,)`` float32 and ``(n,)`` float64.
    """
    n, means = len(rows), torch.empty(rows.shape[1])
    counts = torch.zeros(n, dtype=torch.float64, device=device)
    for columns, block in blocks_on(device, rows, torch.float32):
        kept = block.sort(dim=0).values[n_trimmed : n - n_trimmed]
        means[columns] = kept.double().mean(dim=0).float().cpu()
        counts += ((block >= kept[0]) & (block <= kept[-1])).sum(dim=1)
    return means, counts.cpu()


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 matrices in float32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
