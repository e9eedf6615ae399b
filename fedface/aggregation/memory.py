"""What ARIBA remembers about clients from round to round.

Two things, as plain tensors so that a checkpoint can hold them. A history: how often each client
was seen and pruned, and its outlier counts added up. And, if wanted, residuals: each client's
update divided by its norm, minus the cohort's mean of these, added up over rounds. Honest sites
with different people share little beyond the consensus, so their residuals stay unaligned, while
the direction that colluders share adds up (our own measurements; FoolsGold, Fung et al., RAID
2020, is the nearest published use of a history of updates, without the consensus removed).
"""

import torch
from torch import Tensor

from fedface.aggregation.cohort import Cohort, State
from fedface.aggregation.distances import update_norms

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
        it was). ``clients/residuals``, if there, gets rows of zeros for new clients.
    """
    known = state.get(IDS, torch.zeros(0, dtype=torch.int64))
    everyone = torch.tensor(sorted({*known.tolist(), *cohort.client_ids}), dtype=torch.int64)
    rows = torch.searchsorted(everyone, known)
    new = {IDS: everyone}
    columns = (
        (SEEN, torch.int64),
        (PRUNED, torch.int64),
        (COUNTS, torch.float64),
        (SHUT_OUT, torch.bool),
    )
    for key, dtype in columns:
        column = torch.zeros(len(everyone), dtype=dtype)
        if key in state:
            column[rows] = state[key]
        new[key] = column
    if RESIDUALS in state:
        residuals = torch.zeros(len(everyone), state[RESIDUALS].shape[1])
        residuals[rows] = state[RESIDUALS]
        new[RESIDUALS] = residuals
    present = rows_of(new, cohort)
    new[SEEN][present] += 1
    new[PRUNED][present] += pruned.long()
    new[COUNTS][present] += counts
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
    norms = update_norms(updates)
    moving = (norms > 0)[:, None]
    inverse = torch.where(norms > 0, 1 / norms, 0.0)[:, None]
    residuals = torch.empty_like(updates)
    start = 0
    for columns in torch.split(updates, 1 << 18, dim=1):
        units = columns * inverse
        mean = units.sum(dim=0) / moving.sum().clamp_min(1)
        residuals[:, start : start + columns.shape[1]] = torch.where(moving, units - mean, 0.0)
        start += columns.shape[1]
    return residuals


def add_residuals(state: State, cohort: Cohort, decay: float = 1.0) -> State:
    """Returns ``state`` with this cohort's residuals added to ``clients/residuals``.

    What a client's row held is multiplied by ``decay`` before; rows of absent clients stay.

    The tensor is ``(n_known, dim)`` float32: as large as a cohort of all clients ever seen.

    Args:
        state: As :func:`remember` returned it for this round; not modified.
        cohort: This round's.

    Raises:
        ValueError: If the remembered residuals are of another model.
    """
    dim = cohort.layout.dim
    residuals = state.get(RESIDUALS, torch.zeros(len(state[IDS]), dim))
    if residuals.shape[1] != dim:
        raise ValueError(f"memory needs updates of dim {residuals.shape[1]}, got dim {dim}")
    summed, rows = residuals.clone(), rows_of(state, cohort)
    summed[rows] = decay * summed[rows] + unit_residuals(cohort.updates)
    return {**state, RESIDUALS: summed}
