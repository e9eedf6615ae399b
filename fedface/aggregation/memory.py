"""What ARIBA remembers about clients from round to round.

Two things, as plain tensors so that a checkpoint can hold them. A history: how often each client
was seen and pruned, and its outlier counts added up. And, if wanted, residuals: each client's
update divided by its norm, minus the cohort's mean of these, added up over rounds. Honest sites
with different people share little beyond the consensus, so their residuals stay unaligned, while
the direction that colluders share adds up (our own measurements; FoolsGold, Fung et al., RAID
2020, is the nearest published use of a history of updates, without the consensus removed).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.blocks import (
    Scratch,
    by_columns,
    inner_products,
    remembered,
    sum_by_columns,
)
from fedface.aggregation.cohort import Cohort, State
from fedface.aggregation.distances import gram, update_norms
from fedface.aggregation.on_device import chosen_device

IDS = "clients/ids"
SEEN = "clients/rounds_seen"
PRUNED = "clients/rounds_pruned"
COUNTS = "clients/outlier_counts"
SHUT_OUT = "clients/shut_out"
RESIDUALS = "clients/residuals"


def remember(state: State, cohort: Cohort, counts: Tensor, pruned: Tensor) -> State:
    """Returns ``state`` after this round's history.

    Args:
        state: Empty or from the last round; not modified.
        cohort: This round's.
        counts: ``(n_clients,)`` float64 outlier counts.
        pruned: ``(n_clients,)`` bool.

    Returns:
        ``clients/ids`` ``(n_known,)`` int64 ascending, and row by row beside it
        ``clients/rounds_seen`` and ``clients/rounds_pruned`` (int64),
        ``clients/outlier_counts`` (float64, summed over rounds) and ``clients/shut_out`` (bool, as
        it was). Whatever else is there by client (``clients/...``) gets rows of zeros for new
        clients; what is not stays as it is.
    """
    known = state.get(IDS, torch.zeros(0, dtype=torch.int64))
    everyone = torch.tensor(sorted({*known.tolist(), *cohort.client_ids}), dtype=torch.int64)
    rows = torch.searchsorted(everyone, known)

    def grown(column: Tensor) -> Tensor:
        if len(everyone) == len(known):
            return column
        longer = column.new_zeros(len(everyone), *column.shape[1:])
        longer[rows] = column
        return longer

    new = {k: grown(v) if k.startswith("clients/") else v for k, v in state.items()}
    new[IDS] = everyone
    present = rows_of(new, cohort)
    first = torch.zeros(len(everyone), dtype=torch.int64)
    for key, column, added in (
        (SEEN, first, 1),
        (PRUNED, first, pruned.long()),
        (COUNTS, first.double(), counts),
    ):
        new[key] = new.get(key, column).clone()
        new[key][present] += added
    new.setdefault(SHUT_OUT, first.bool())
    return new


def rows_of(state: State, cohort: Cohort) -> Tensor:
    """Returns the ``(n_clients,)`` rows of ``state`` that belong to ``cohort``'s clients."""
    return torch.searchsorted(state[IDS], torch.tensor(cohort.client_ids, dtype=torch.int64))


def unit_residuals(updates: Tensor) -> Tensor:
    """Returns each update at unit length minus the clients' mean of these.

    Args:
        updates: ``(n_clients, dim)``.

    Returns:
        ``(n_clients, dim)`` float32. A zero update has no direction: it does not enter the mean,
        and its residual is zero.
    """
    n_clients, dim = updates.shape
    result, residuals = np.empty((n_clients, dim), np.float32), _residuals_of(updates)

    def fill(columns: slice) -> None:
        result[:, columns] = residuals(columns)

    by_columns(fill, (n_clients, dim))
    return torch.from_numpy(result)


def add_residuals(
    state: State, cohort: Cohort, decay: float = 1.0, norms: Tensor | None = None
) -> tuple[State, Tensor]:
    """Returns ``state`` with this cohort's residuals added, and the sums' inner products.

    The sums are ``clients/residuals``; rows of absent clients stay.

    The tensor is ``(n_known, dim)`` float32: as large as a cohort of all clients ever seen. Each
    round writes a new one, in one pass over the old one and the updates.

    Args:
        state: As :func:`remember` returned it for this round; not modified.
        cohort: This round's.
        decay: What is left of what a client's row held before.
        norms: The updates' ``update_norms``, where they are known.

    Returns:
        The new state, and ``(n_clients, n_clients)`` float64 between the cohort's rows: six digits
        of what their lengths allow (``gram(exact=False)``), had while the rows are at hand.

    Raises:
        ValueError: If the remembered residuals are of another model.
    """
    n_known, dim = len(state[IDS]), cohort.layout.dim
    before = state[RESIDUALS].numpy() if RESIDUALS in state else None
    if before is not None and before.shape[1] != dim:
        raise ValueError(f"memory needs updates of dim {before.shape[1]}, got dim {dim}")
    rows, residuals = rows_of(state, cohort).tolist(), _residuals_of(cohort.updates, norms)
    absent = sorted({*range(n_known)} - {*rows})
    summed = remembered((n_known, dim))

    here, past = chosen_device() is None, Scratch()

    def add(columns: slice) -> NDArray[np.float32]:
        new, sums = summed[:, columns], residuals(columns)
        if before is None:
            new[absent] = 0
        else:
            faded = past.array("faded", sums.shape, np.float32)
            for kept, row in zip(faded, rows, strict=True):
                np.multiply(before[row, columns], np.float32(decay), out=kept)
            sums += faded
            for row in absent:
                np.copyto(new[row], before[row, columns])
        for row, kept in zip(rows, sums, strict=True):
            np.copyto(new[row], kept)
        return inner_products(sums) if here else nothing

    nothing = np.zeros((len(rows), len(rows)), np.float32)
    products = sum_by_columns(add, (n_known, dim), nothing.shape)
    sums = torch.from_numpy(summed)
    if not here:
        products = gram(sums, chosen=torch.tensor(rows), exact=False)
    return {**state, RESIDUALS: sums}, products


def _residuals_of(
    updates: Tensor, norms: Tensor | None = None
) -> Callable[[slice], NDArray[np.float32]]:
    """What gives some columns of the unit residuals, until the next call on the same thread."""
    values, scratch = updates.numpy(), Scratch()
    lengths = (update_norms(updates) if norms is None else norms).numpy()
    moving = lengths > 0
    inverse = np.divide(1, lengths, where=moving, out=np.zeros_like(lengths))[:, None]
    n_moving = max(1, np.count_nonzero(moving))

    def residuals(columns: slice) -> NDArray[np.float32]:
        piece = values[:, columns]
        units = scratch.array("units", piece.shape, np.float32)
        np.multiply(piece, inverse, out=units, casting="same_kind")
        units -= (units.sum(axis=0, dtype=np.float64) / n_moving).astype(np.float32)
        units[~moving] = 0
        return units

    return residuals
