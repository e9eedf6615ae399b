"""The active party at the server: mini-batch training with passive parties through messages.

A step is one exchange. ``train.backward`` carries the gradient of the last embeddings and asks for
the next, so that a party is asked once per step and all parties compute side by side; several
mini-batches may travel in one message. A party that fails, is silent or sends what an honest one
would not is named, counted and missing for that exchange; what stands in for its embeddings is
:data:`fedface.vertical.missing.Missing`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.screening import InvalidReply
from fedface.data.tensors import to_float
from fedface.vertical.active import ActiveParty, Step
from fedface.vertical.alignment import intersection, places
from fedface.vertical.channel import Channel
from strategies.cohorts import exchange, roll_call
from strategies.vertical_records import (
    ALIGN,
    BACKWARD,
    EMBED,
    RELEASE,
    SAVE,
    failure,
    request,
    to_embeddings,
    to_spent,
    to_tokens,
)

Received = list[Tensor | None]
"""Party by party ``(n, dim)`` embeddings, None where one is missing."""

RELEASE_ROWS = 512
"""Records whose embeddings are asked for in one message for inference."""


@dataclass(frozen=True)
class ActiveRecords:
    """What the active party has of the aligned records, in the order of their numbers.

    Attributes:
        labels: ``(n,)`` int64, the enrolled person or, for strangers, anything.
        own: ``(n, h, w, 3)`` uint8 own views, or None.
        rows: Party by party ``(n,)`` int64: what number the party has for each record; None for a
            party that could not be aligned and takes no part.
    """

    labels: Tensor
    own: NDArray[np.uint8] | None
    rows: tuple[Tensor | None, ...]

    def views(self, records: Tensor, device: torch.device) -> Tensor | None:
        """Returns the own views of ``records`` in [-1, 1] on ``device``, or None."""
        return None if self.own is None else to_float(self.own[records.numpy()]).to(device)


@dataclass
class RoundFacts:
    """What happened in one round.

    Attributes:
        n_steps: Steps of the active party.
        losses: Sums over the steps: loss, task loss, distribution loss.
        answered: Party -> exchanges with a valid answer.
        refused: Party -> the first reason why an answer was refused, and how many were.
    """

    n_steps: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    answered: dict[str, int] = field(default_factory=dict)
    refused: dict[str, tuple[str, int]] = field(default_factory=dict)

    def refuse(self, party: str, why: str) -> None:
        """Counts a refused answer."""
        first, count = self.refused.get(party, (why, 0))
        self.refused[party] = (first, count + 1)

    def count(self, step: Step) -> None:
        """Counts a step."""
        self.n_steps += 1
        for i, value in enumerate((step.loss, step.task_loss, step.distribution_loss)):
            self.losses[i] += value


class VerticalStrategy:
    """Trains one active party with the passive parties that a grid reaches.

    Attributes:
        channels: What is known of each passive party, in the order of their partition ids.
        active: The active party; set it before training.
        records: What it has of the aligned records; set it before training.
        on_failure: Called with party and reason when a client fails; may raise to end the run.
        asked: Exchanges so far, a measure of the messages.
    """

    active: ActiveParty
    records: ActiveRecords

    def __init__(
        self,
        channels: Sequence[Channel],
        timeout: float,
        device: torch.device,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        """Keeps the settings; nothing is sent before :meth:`align`.

        Args:
            channels: One per passive party.
            timeout: Seconds that an exchange waits.
            device: Where the active party computes.
            on_failure: See the attributes.
        """
        self.channels = tuple(channels)
        self.timeout = timeout
        self.device = device
        self.on_failure = on_failure
        self.asked = 0
        self._roster: dict[int, int] = {}

    def align(
        self, grid: Grid, own: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[Tensor | None, ...], dict[str, str]]:
        """Finds the records that all have.

        Args:
            grid: Flower's grid.
            own: The active party's own tokens.

        Returns:
            The tokens of the aligned records in order, party by party the rows they have there
            (None for a party that was refused), and party -> why it was refused.

        Raises:
            ValueError: If no record is left.
            TooFewClients: If parties are not connected.
        """
        self._roster = roll_call(grid, len(self.channels))
        messages = {p: request(node, ALIGN, 0) for p, node in self._roster.items()}
        replies = exchange(grid, messages, self.timeout) if messages else {}
        tokens: dict[str, tuple[str, ...]] = {}
        refused: dict[str, str] = {}
        for party, channel in enumerate(self.channels):
            name = channel.party
            try:
                found = to_tokens(self._reply(replies, party), name, 2 * len(own))
                intersection({name: found, "active": own})
                tokens[name] = found
            except ValueError as error:
                refused[name] = str(error)
        aligned = intersection({"active": own, **tokens})
        rows = tuple(
            torch.from_numpy(places(c.party, tokens[c.party], aligned))
            if c.party in tokens
            else None
            for c in self.channels
        )
        return aligned, rows, refused

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        batches: Sequence[Tensor],
        present: Iterable[int],
        steps_per_message: int,
        alone: bool,
        augmented: Callable[[Tensor, int], Tensor],
        on_step: Callable[[int], None] | None = None,
        keep: Sequence[Tensor] = (),
    ) -> RoundFacts:
        """Trains once on ``batches``.

        Args:
            grid: Flower's grid.
            server_round: The round, from 1.
            batches: Record numbers of each mini-batch.
            present: The parties that are asked; one that stays silent is not asked again.
            steps_per_message: Mini-batches per exchange.
            alone: Whether each step sees one party at a time.
            augmented: (own views, number of the step) -> changed own views.
            on_step: Called with the mini-batches done.
            keep: Party by party ``(n_records, dim)``, where what is received is written down; or
                none.

        Raises:
            ValueError: If the loss is not finite.
        """
        facts, there = RoundFacts(), {p for p in present if self.records.rows[p] is not None}
        waiting: dict[int, tuple[int, Tensor]] = {}
        for start in range(0, len(batches), steps_per_message):
            chunk = batches[start : start + steps_per_message]
            received = self._exchanged(
                grid, server_round, torch.cat(list(chunk)), there, waiting, facts
            )
            for p, (z, _) in received.items() if keep else ():
                keep[p][torch.cat(list(chunk))] = z
            waiting = self._steps(chunk, start, received, alone, augmented, facts)
            if on_step is not None:
                on_step(start + len(chunk))
        self._finish(grid, server_round, waiting, facts)
        return facts

    def train_alone(
        self,
        batches: Sequence[Tensor],
        kept: Received,
        alone: bool,
        augmented: Callable[[Tensor, int], Tensor],
    ) -> RoundFacts:
        """Trains the active party once on ``batches`` with embeddings that it kept.

        Args:
            batches: Record numbers of each mini-batch.
            kept: Party by party ``(n_records, dim)``, by record number.
            alone: As for :meth:`train_round`, as is the next.
            augmented: Changes own views.
        """
        facts = RoundFacts()
        for number, records in enumerate(batches):
            z: Received = [None if values is None else values[records] for values in kept]
            self._step(records, number, z, alone, augmented, facts)
        return facts

    def released(
        self, grid: Grid, server_round: int, records: Tensor, facts: RoundFacts | None = None
    ) -> list[tuple[Tensor, Received]]:
        """Returns embeddings for inference, piece by piece: record numbers and what was received.

        Args:
            grid: Flower's grid.
            server_round: The round.
            records: Record numbers.
            facts: Where refused answers are counted.
        """
        facts = facts or RoundFacts()
        there = {p for p, rows in enumerate(self.records.rows) if rows is not None}
        pieces = []
        for piece in torch.split(records, RELEASE_ROWS):
            found = self._exchanged(grid, server_round, piece, there, {}, facts, RELEASE)
            pieces.append((piece, [found.get(p, (None, 0))[0] for p in range(len(self.channels))]))
        return pieces

    def save(self, grid: Grid, server_round: int) -> dict[str, dict[str, float]]:
        """Lets the parties write their state down; returns what each says that it has spent."""
        there = [p for p, rows in enumerate(self.records.rows) if rows is not None]
        replies = self._sent(grid, {p: request(self._roster[p], SAVE, server_round) for p in there})
        spent: dict[str, dict[str, float]] = {}
        for party in there:
            name = self.channels[party].party
            try:
                spent[name] = to_spent(self._reply(replies, party), name)
            except InvalidReply:
                continue
        return spent

    # ---- one exchange

    def _exchanged(
        self,
        grid: Grid,
        server_round: int,
        records: Tensor,
        there: set[int],
        waiting: dict[int, tuple[int, Tensor]],
        facts: RoundFacts,
        kind: str = EMBED,
    ) -> dict[int, tuple[Tensor, int]]:
        """Asks the parties for ``records``; party -> embeddings and the release's number.

        Who is silent leaves ``there``.
        """
        rows = {p: self._rows(p)[records] for p in sorted(there)}
        messages = {
            p: request(
                self._roster[p],
                BACKWARD if p in waiting else kind,
                server_round,
                asked,
                waiting.get(p),
            )
            for p, asked in rows.items()
        }
        replies = self._sent(grid, messages)
        found: dict[int, tuple[Tensor, int]] = {}
        for p, asked in rows.items():
            channel = self.channels[p]
            try:
                z, number = to_embeddings(self._reply(replies, p), asked, channel)
                found[p] = z.to(self.device), number
                facts.answered[channel.party] = facts.answered.get(channel.party, 0) + 1
            except InvalidReply as error:
                facts.refuse(channel.party, str(error))
                if p not in replies:
                    there.discard(p)
        return found

    def _finish(
        self,
        grid: Grid,
        server_round: int,
        waiting: dict[int, tuple[int, Tensor]],
        facts: RoundFacts,
    ) -> None:
        """Sends the last gradients of a round."""
        replies = self._sent(
            grid,
            {
                p: request(self._roster[p], BACKWARD, server_round, gradient=gradient)
                for p, gradient in waiting.items()
            },
        )
        for p in waiting:
            name = self.channels[p].party
            try:
                to_spent(self._reply(replies, p), name)
            except InvalidReply as error:
                facts.refuse(name, str(error))

    def _sent(self, grid: Grid, messages: dict[int, Message]) -> dict[int, Message]:
        """Replies by party; tells of failures."""
        if not messages:
            return {}
        self.asked += 1
        replies = exchange(grid, messages, self.timeout, poll_seconds=0.005)
        for party, reply in sorted(replies.items()):
            why = failure(reply)
            if why is not None and self.on_failure is not None:
                self.on_failure(self.channels[party].party, why)
        return replies

    def _reply(self, replies: dict[int, Message], party: int) -> Message:
        if party not in replies:
            name = self.channels[party].party
            raise InvalidReply(f"party {name} did not reply within {self.timeout:g} s")
        return replies[party]

    def _rows(self, party: int) -> Tensor:
        rows = self.records.rows[party]
        if rows is None:
            raise ValueError(f"party {self.channels[party].party} was not aligned")
        return rows

    # ---- steps of the active party

    def _steps(
        self,
        chunk: Sequence[Tensor],
        start: int,
        received: dict[int, tuple[Tensor, int]],
        alone: bool,
        augmented: Callable[[Tensor, int], Tensor],
        facts: RoundFacts,
    ) -> dict[int, tuple[int, Tensor]]:
        """Steps on each mini-batch; party -> the release's number and the gradients for it."""
        gradients: dict[int, list[Tensor]] = {p: [] for p in received}
        offset = 0
        for number, records in enumerate(chunk, start):
            stop = offset + len(records)
            z: Received = [
                received[p][0][offset:stop] if p in received else None
                for p in range(len(self.channels))
            ]
            for p, gradient in self._step(records, number, z, alone, augmented, facts).items():
                gradients[p].append(gradient)
            offset = stop
        return {p: (received[p][1], torch.cat(parts)) for p, parts in gradients.items() if parts}

    def _step(
        self,
        records: Tensor,
        number: int,
        z: Received,
        alone: bool,
        augmented: Callable[[Tensor, int], Tensor],
        facts: RoundFacts,
    ) -> dict[int, Tensor]:
        """One mini-batch, with all parties together or each alone; party -> its gradient."""
        own = self.records.views(records, self.device)
        if own is not None:
            own = augmented(own, number)
        there = [p for p, values in enumerate(z) if values is not None]
        if not there and own is None:
            return {}
        labels = self.records.labels[records].to(self.device)
        places_ = records.to(self.device)
        gradients: dict[int, Tensor] = {}
        for seen in [[p] for p in there] if alone else [there]:
            shown: Received = [values if p in seen else None for p, values in enumerate(z)]
            step = self.active.step(own, shown, labels, places_)
            facts.count(step)
            for p in seen:
                gradient = step.gradients[p]
                if gradient is not None:
                    gradients[p] = gradient.cpu()
        return gradients
