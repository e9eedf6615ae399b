"""The active party at a client: the server relays embeddings to it and gradients from it.

The server never holds a label, the top model or the own views. It sees record numbers, the released
embeddings, the gradients, the losses and the figures. What the active party sends is checked as
what anybody sends; but whatever is wrong with it ends the run, since nobody else has labels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.screening import InvalidReply
from fedface.vertical.trainer import Losses, Pieces
from strategies.cohorts import exchange
from strategies.vertical_records import (
    ALIGN,
    SAVE,
    content_of,
    failure,
    named_values,
    request,
    to_spent,
    to_tokens,
)
from strategies.vertical_seats import ActivePartyFailed

Read = TypeVar("Read")

START, STEPS, ALONE, KEEP = "train.start", "train.steps", "train.alone", "train.keep"
MEASURE = "evaluate.measure"

PARTY = "active"
"""The active party's name in messages and events."""

MOST_RECORDS, MOST_TEXT = 1 << 24, 1 << 24
"""The most tokens, and characters of figures, that it may send."""


class RelayedActive:
    """The active party at the node after the passive parties."""

    n_nodes = 1

    def __init__(
        self, timeout: float, on_failure: Callable[[str, str], None] | None = None
    ) -> None:
        """Keeps the settings.

        Args:
            timeout: Seconds that an exchange waits.
            on_failure: Called with ``"active"`` and the reason when the client fails; may raise.
        """
        self.timeout = timeout
        self.on_failure = on_failure
        self._node = 0

    def tokens(self, grid: Grid, node: int | None) -> tuple[str, ...]:
        """Asks for its tokens."""
        if node is None:
            raise ActivePartyFailed("the active party needs a node of its own, found none")
        self._node = node
        return self._asked(
            grid, request(node, ALIGN, 0), lambda r: to_tokens(r, PARTY, MOST_RECORDS)
        )

    def start(self, grid: Grid, rows: Tensor, completed: int) -> tuple[Tensor, Tensor]:
        """Sends the rows; it takes its own saved state up."""
        message = self._message(START, completed + 1, {"aligned": {"rows": rows}})

        def read(reply: Message) -> tuple[Tensor, Tensor]:
            content = content_of(reply, PARTY, {"numbers"})
            found = named_values(content, "numbers", ("training", "measured"), PARTY, 8 * len(rows))
            training, measured = (found[name] for name in ("training", "measured"))
            both = np.concatenate([training, measured])
            if both.dtype != np.int64 or not np.array_equal(np.sort(both), np.arange(len(rows))):
                raise InvalidReply(
                    f"party {PARTY} needs to train on or measure each of {len(rows)} records once"
                )
            return _tensor(np.sort(training)), _tensor(np.sort(measured))

        return self._asked(grid, message, read)

    def steps(
        self,
        grid: Grid,
        server_round: int,
        start: int,
        batches: Sequence[Tensor],
        received: Mapping[int, Tensor],
    ) -> tuple[dict[int, Tensor], list[Losses]]:
        """Sends the embeddings; returns its gradients and losses."""
        embeddings = {str(p): z for p, z in received.items()}
        arrays = {"batch": _batch(batches), "embeddings": embeddings}
        message = self._message(STEPS, server_round, arrays, start=start)

        def read(reply: Message) -> tuple[dict[int, Tensor], list[Losses]]:
            allowed = {"losses"} | ({"gradients"} if received else set())
            content = content_of(reply, PARTY, allowed)
            return _gradients(content, received), _losses(content, batches, len(received))

        return self._asked(grid, message, read)

    def steps_alone(self, grid: Grid, server_round: int, batches: Sequence[Tensor]) -> list[Losses]:
        """Sends the mini-batches; returns its losses."""
        message = self._message(ALONE, server_round, {"batch": _batch(batches)})
        return self._asked(
            grid,
            message,
            lambda reply: _losses(content_of(reply, PARTY, {"losses"}), batches, None),
        )

    def keep(self, grid: Grid, server_round: int, pieces: Pieces) -> None:
        """Sends the embeddings."""
        message = self._message(KEEP, server_round, _pieces(pieces))
        self._asked(grid, message, lambda reply: to_spent(reply, PARTY))

    def measure(self, grid: Grid, server_round: int, pieces: Pieces) -> dict[str, Any]:
        """Sends the embeddings; returns its figures."""
        message = self._message(MEASURE, server_round, _pieces(pieces))
        figures = self._asked(grid, message, to_figures)
        if "failed" in figures:
            raise ValueError(figures["failed"])
        return figures

    def save(self, grid: Grid, server_round: int) -> None:
        """Lets it write its state down: a checkpoint counts only if it did."""
        self._asked(
            grid, request(self._node, SAVE, server_round), lambda reply: to_spent(reply, PARTY)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Returns nothing: the server does not have its state."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Does nothing: the active party took its state up itself."""

    def _message(
        self,
        kind: str,
        server_round: int,
        arrays: Mapping[str, Mapping[str, Tensor]],
        **config: int,
    ) -> Message:
        content: dict[str, ArrayRecord | ConfigRecord] = {
            "config": ConfigRecord({"server-round": server_round, **config})
        }
        for record, values in arrays.items():
            if values:
                content[record] = ArrayRecord(
                    {name: Array(value.contiguous().numpy()) for name, value in values.items()}
                )
        return Message(RecordDict(dict(content)), self._node, kind, group_id=str(server_round))

    def _asked(self, grid: Grid, message: Message, read: Callable[[Message], Read]) -> Read:
        """What ``read`` makes of the reply.

        Raises:
            ActivePartyFailed: If there is none, or ``read`` refuses it.
        """
        replies = exchange(grid, {0: message}, self.timeout, poll_seconds=0.005)
        lost = "nobody can train without labels"
        if 0 not in replies:
            raise ActivePartyFailed(
                f"party {PARTY} did not reply within {self.timeout:g} s; {lost}"
            )
        why = failure(replies[0])
        if why is not None and self.on_failure is not None:
            self.on_failure(PARTY, why)
        try:
            return read(replies[0])
        except InvalidReply as error:
            raise ActivePartyFailed(f"{error}; {lost}") from None


def to_figures(reply: Message) -> dict[str, Any]:
    """Returns the figures of an evaluation, or ``{"failed": why}``.

    Raises:
        InvalidReply: If there are none, or others than a display and a table need.
    """
    record = content_of(reply, PARTY, {"figures"}).get("figures")
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise InvalidReply(f"party {PARTY} needs to send figures as one text, got none")
    try:
        figures = json.loads(text)
        good = isinstance(figures["failed"], str) if "failed" in figures else _complete(figures)
        json.dumps(figures, allow_nan=False)
    except (ValueError, TypeError, LookupError, RecursionError):
        good = False
    if not good:
        raise InvalidReply(f"party {PARTY} needs to send the figures of an evaluation, got others")
    return dict(figures)


def _complete(figures: Any) -> bool:
    """Whether what is shown of an evaluation is there; raises where it is not even alike."""
    verification, enrolled = figures["verification"], figures["enrolled"]
    numbers = [point[k] for point in verification["points"] for k in ("alpha", "tar")]
    numbers += [verification["eer"], figures["identification"]["rates"][0]["rate"]]
    numbers += [] if enrolled is None else [enrolled["accuracy"]]
    known = {"verification", "identification", "enrolled", "backdoor"}
    return set(figures) == known and all(isinstance(v, int | float) for v in numbers)


def _batch(batches: Sequence[Tensor]) -> dict[str, Tensor]:
    return {
        "records": torch.cat(list(batches)),
        "sizes": torch.tensor([len(batch) for batch in batches]),
    }


def _pieces(pieces: Pieces) -> dict[str, dict[str, Tensor]]:
    """The record numbers, and the embeddings named ``piece.party``."""
    return {
        "batch": _batch([records for records, _ in pieces]),
        "embeddings": {
            f"{number}.{p}": z
            for number, (_, received) in enumerate(pieces)
            for p, z in enumerate(received)
            if z is not None
        },
    }


def _gradients(content: Mapping[str, object], received: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The gradient of each party whose embeddings were sent, checked."""
    if not received:
        return {}
    largest = 4 * max(z.numel() for z in received.values())
    names = tuple(str(p) for p in received)
    found = named_values(content, "gradients", names, PARTY, largest)
    for p, z in received.items():
        gradient = found[str(p)]
        if gradient.shape != tuple(z.shape) or gradient.dtype != np.float32:
            raise InvalidReply(
                f"party {PARTY} needs to send float32 gradients of shape {tuple(z.shape)}, "
                f"got {gradient.shape} {gradient.dtype}"
            )
        if not np.isfinite(gradient).all():
            raise InvalidReply(f"party {PARTY} needs to send finite gradients, got others")
    return {p: _tensor(found[str(p)]) for p in received}


def _losses(
    content: Mapping[str, object], batches: Sequence[Tensor], n_parties: int | None
) -> list[Losses]:
    """The losses of each step, checked; a mini-batch has at most one step for each party."""
    most = len(batches) * max(1, n_parties if n_parties is not None else 1 << 10)
    values = named_values(content, "losses", ("losses",), PARTY, 24 * most)["losses"]
    if values.dtype != np.float64 or values.ndim != 2 or values.shape[1] != 3:
        raise InvalidReply(
            f"party {PARTY} needs to send float64 losses of shape (steps, 3), "
            f"got {values.shape} {values.dtype}"
        )
    if len(values) > most or not np.isfinite(values).all():
        raise InvalidReply(f"party {PARTY} needs to send at most {most} finite losses, got others")
    return [Losses(*map(float, row)) for row in values]


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(values))
