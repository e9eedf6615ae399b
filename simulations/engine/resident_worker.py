"""The worker's side of the resident engine: a process that answers for one client after the other.

It keeps what the client app keeps between its calls: the model on its device, the data, and the
round's global weights.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor

from clients.arrays import held_record, holding
from fedface.aggregation.screening import InvalidReply
from fedface.held import Held
from simulations.engine.cohort_memory import Place, opened
from simulations.engine.local_grid import RAISED, answer, give_identity
from strategies.records import values_of

Arrays = dict[str, NDArray[Any]]
"""What is broadcast of an ArrayRecord: its values by name."""


@dataclass(frozen=True)
class Work:
    """A message for one client, without the arrays that all clients get alike.

    Attributes:
        metadata: The message's.
        records: Its records but those broadcast.
        broadcast: Record name -> reference to its :data:`Arrays` in Ray's object store.
        context: The client's context.
        dim: How many float32 numbers an update has, zero if no update is expected.
        place: The matrix that updates go to, if memory is shared.
        row: The row of the matrix for this client.
    """

    metadata: Metadata
    records: dict[str, Any]
    broadcast: dict[str, Any]
    context: Context
    dim: int
    place: Place | None
    row: int


@dataclass(frozen=True)
class Update:
    """A record of float32 arrays that lie one behind the other in one row.

    Attributes:
        name: The record's.
        shapes: Names and shapes of its arrays, in order.
        values: ``(dim,)`` the row, or None if it was written where the server reads it.
    """

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    values: NDArray[np.float32] | None


@dataclass(frozen=True)
class Answer:
    """What a client answered.

    Attributes:
        records: The reply's records but the update, or None for an error.
        error: The error, or None.
        state: The client's state afterwards.
        update: The update, or None if there is none to be had as one row.
        seconds: What the client took, and the writing of its update.
    """

    records: dict[str, Any] | None
    error: Error | None
    state: RecordDict
    update: Update | None
    seconds: float


class ClientWorker:
    """What a Ray actor holds."""

    def __init__(self, app: ClientApp, folder: str) -> None:
        """Answers with ``app``, in the working folder ``folder``, with one thread."""
        os.chdir(folder)
        torch.set_num_threads(1)
        give_identity()
        self.app = app
        self._broadcast: dict[str, dict[str, Tensor]] = {}
        self._matrix: tuple[Place, Tensor | None] | None = None

    def answer(self, works: Sequence[Work]) -> list[Answer]:
        """Lets one client after the other answer; updates go into the shared matrix if they can.

        What fails here fails for the client that it happened to.
        """
        wanted = {reference.hex() for work in works for reference in work.broadcast.values()}
        # What a worker holds stays in the object store: no more than these messages need.
        self._broadcast = {key: v for key, v in self._broadcast.items() if key in wanted}
        return [self._answered(work) for work in works]

    def _answered(self, work: Work) -> Answer:
        try:
            return self._answer(work)
        except Exception as error:
            reason = f"worker failed: {last_line(error)}"
            return Answer(None, Error(RAISED, reason), work.context.state, None, 0.0)

    def _answer(self, work: Work) -> Answer:
        records = dict(work.records)
        for name, reference in work.broadcast.items():
            records[name] = held_record(self._received(reference))
        message = Message(RecordDict(records), metadata=work.metadata)  # type: ignore[call-overload]
        started = perf_counter()
        with holding():
            reply = answer(self.app, message, work.context)
        if reply.has_error():
            seconds = perf_counter() - started
            return Answer(None, reply.error, work.context.state, None, seconds)
        content: dict[str, Any] = dict(reply.content)
        update = self._moved(content, work)
        return Answer(content, None, work.context.state, update, perf_counter() - started)

    def _moved(self, content: dict[str, Any], work: Work) -> Update | None:
        """Takes the update out of ``content`` and writes it as one row, if there is one."""
        found = flat_record(content, work.dim)
        if found is None:
            return None
        name, arrays = found
        del content[name]
        row, values = self._row(work), None
        if row is None:
            values = np.empty(work.dim, dtype=np.float32)
            row = torch.from_numpy(values)
        write(arrays, row)
        return Update(name, tuple((key, v.shape) for key, v in arrays.items()), values)

    def _received(self, reference: Any) -> dict[str, Tensor]:
        """The broadcast arrays as tensors that lie in Ray's object store; nobody writes there."""
        import ray

        key = reference.hex()
        if key not in self._broadcast:
            arrays: Arrays = ray.get(reference)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                self._broadcast[key] = {n: torch.from_numpy(v) for n, v in arrays.items()}
        return self._broadcast[key]

    def _row(self, work: Work) -> Tensor | None:
        if work.place is None:
            return None
        if self._matrix is None or self._matrix[0] != work.place:
            self._matrix = (work.place, opened(work.place))
        matrix = self._matrix[1]
        return None if matrix is None else matrix[work.row]


def flat_record(content: Mapping[str, object], dim: int) -> tuple[str, Arrays] | None:
    """Returns the name and the values of the first record of ``dim`` float32 numbers, if any."""
    for name, record in content.items():
        if not isinstance(record, ArrayRecord) or dim == 0 or total(record) != dim:
            continue
        try:
            return name, {key: read(array) for key, array in record.items()}
        except InvalidReply:
            continue  # it goes as it is, and the server refuses it by name
    return None


def total(record: ArrayRecord) -> int:
    """Returns how many numbers a record holds if all are float32, else zero."""
    if any(array.dtype != "float32" for array in record.values()):
        return 0
    return sum(prod(array.shape) for array in record.values())


def read(array: Array) -> NDArray[Any]:
    """Returns an array's values, without a copy where they are held or in ``.npy`` bytes.

    Raises:
        InvalidReply: If they are not what the array says.
    """
    if isinstance(array, Held):
        return array.values.numpy()
    values = values_of("array", array)
    if str(values.dtype) != array.dtype or values.shape != tuple(array.shape):
        raise InvalidReply(
            f"array needs {array.dtype} of shape {array.shape}, got {values.dtype} of "
            f"{values.shape}"
        )
    return values


def write(arrays: Arrays, row: Tensor) -> None:
    """Writes the arrays one behind the other into ``row``."""
    target, start = row.numpy(), 0
    for values in arrays.values():
        target[start : start + values.size].reshape(values.shape)[...] = values
        start += values.size


def last_line(error: Exception) -> str:
    """What happened, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[-1].strip()}"
