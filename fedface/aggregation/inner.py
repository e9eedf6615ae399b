"""The rules that may follow a mixing step, and how such a pair is applied.

A mixing step (nearest-neighbour mixing, bucketing) replaces the updates by averages of some of
them, as a matrix whose rows sum to one, and hands these to an inner rule.
"""

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedface.aggregation.blocks import Scratch, by_columns
from fedface.aggregation.centered_clipping import CenteredClipping
from fedface.aggregation.cohort import Aggregation, Cohort, State
from fedface.aggregation.geometric_median import GeometricMedian
from fedface.aggregation.krum import Krum, MultiKrum
from fedface.aggregation.mean import Mean
from fedface.aggregation.median import Median
from fedface.aggregation.trimmed_mean import TrimmedMean

AnyInner = Annotated[
    Mean | Median | TrimmedMean | Krum | MultiKrum | GeometricMedian | CenteredClipping,
    Field(discriminator="name"),
]
"""Every rule that may follow a mixing step."""

PREFIX = "then/"
"""Stands before the keys of the inner rule's state."""


def mixed(updates: Tensor, mixing: Tensor, block: int | None = None) -> Tensor:
    """Returns ``mixing @ updates``, accumulated in float64.

    Args:
        updates: ``(n_clients, dim)`` float32.
        mixing: ``(n_rows, n_clients)`` float64.
        block: Columns per pass.

    Returns:
        ``(n_rows, dim)`` float32.
    """
    values, matrix, scratch = updates.numpy(), mixing.numpy(), Scratch()
    result = np.empty((len(matrix), values.shape[1]), np.float32)

    def mix(columns: slice) -> None:
        result[:, columns] = matrix @ scratch.exact(values[:, columns])

    by_columns(mix, values.shape, block)
    return torch.from_numpy(result)


def aggregate_mixed(
    then: AnyInner, cohort: Cohort, mixing: Tensor, state: State
) -> tuple[Aggregation, State]:
    """Returns what the inner rule makes of the mixed cohort, in terms of the real clients.

    Claimed counts are mixed like the updates, and rounded. Trust goes back through the matrix,
    trust_i = sum_j M_ji trust'_j; a client's score is the mean score of the rows it is in, by
    its share of them. Scores of layers are not carried back.

    Args:
        then: The inner rule.
        cohort: The real clients.
        mixing: ``(n_rows, n_clients)`` float64, no entry negative, rows that sum to one, each
            client in at least one row.
        state: Of the pair: the inner rule's, its keys prefixed with ``then/``.
    """
    n_examples, n_steps = (
        (mixing @ counts.double()).round().long() for counts in (cohort.n_examples, cohort.n_steps)
    )
    inner = replace(
        cohort,
        updates=mixed(cohort.updates, mixing),
        n_examples=n_examples,
        n_steps=n_steps,
        client_ids=tuple(range(len(mixing))),
    )
    own = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    result, own = then(inner, own)
    scores = result.scores
    if scores is not None:
        scores = mixing.T @ scores / mixing.sum(dim=0)
    trust = mixing.T @ result.trust
    return Aggregation(result.update, trust, scores), {PREFIX + k: v for k, v in own.items()}
