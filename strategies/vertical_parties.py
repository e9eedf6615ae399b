"""Exchanges with the passive parties: what they are asked, what is refused, what is counted.

A party that fails, is silent or sends what an honest one would not is named, counted and missing
for that exchange.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedface.aggregation.screening import InvalidReply
from fedface.vertical.alignment import intersection, places
from fedface.vertical.channel import Channel
from fedface.vertical.trainer import Losses, Pieces
from strategies.cohorts import exchange
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

RELEASE_ROWS = 512
"""Records whose embeddings are asked for in one message for inference."""

Waiting = dict[int, tuple[int, Tensor]]
"""Party -> the number of its release and the gradient that it has not got yet."""


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

    def count(self, steps: Sequence[Losses]) -> None:
        """Counts steps of the active party."""
        self.n_steps += len(steps)
        for step in steps:
            for i, value in enumerate(step):
                self.losses[i] += value


class PassiveParties:
    """The passive parties that a grid reaches.

    Attributes:
        channels: What is known of each, in the order of their partition ids.
        nodes: Party -> where it lives; set it before anything is asked.
        rows: Party by party ``(n_aligned,)`` int64, what number it has for each record; None for
            one that could not be aligned and takes no part.
        asked: Exchanges so far, a measure of the messages.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        timeout: float,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        """Keeps the settings.

        Args:
            channels: One per passive party.
            timeout: Seconds that an exchange waits.
            on_failure: Called with party and reason when a client fails; may raise to end the run.
        """
        self.channels = tuple(channels)
        self.timeout = timeout
        self.on_failure = on_failure
        self.nodes: dict[int, int] = {}
        self.rows: tuple[Tensor | None, ...] = (None,) * len(self.channels)
        self.asked = 0

    def align(self, grid: Grid, own: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Finds the records that all have.

        Args:
            grid: Flower's grid.
            own: The active party's own tokens.

        Returns:
            The tokens of the aligned records in order, and party -> why it was refused.

        Raises:
            ValueError: If no record is left.
        """
        channels = enumerate(self.channels)
        messages = {p: request(self.nodes[p], ALIGN, 0) for p, _ in channels}
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
        self.rows = tuple(
            torch.from_numpy(places(c.party, tokens[c.party], aligned))
            if c.party in tokens
            else None
            for c in self.channels
        )
        return aligned, refused

    @property
    def aligned(self) -> set[int]:
        """The parties that take part."""
        return {p for p, rows in enumerate(self.rows) if rows is not None}

    def embeddings(
        self,
        grid: Grid,
        server_round: int,
        records: Tensor,
        there: set[int],
        waiting: Waiting,
        facts: RoundFacts,
        kind: str = EMBED,
    ) -> dict[int, tuple[Tensor, int]]:
        """Asks for the embeddings of ``records`` and brings the gradients that are ``waiting``.

        Args:
            grid: Flower's grid.
            server_round: The round.
            records: Record numbers.
            there: Who is asked; who is silent leaves it.
            waiting: Gradients of the exchange before.
            facts: Where answers are counted.
            kind: The message's type for those without a gradient.

        Returns:
            Party -> valid embeddings and the number of their release.
        """
        rows = {p: self._rows(p)[records] for p in sorted(there)}
        messages = {
            p: request(
                self.nodes[p],
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
                found[p] = to_embeddings(self._reply(replies, p), asked, channel)
                facts.answered[channel.party] = facts.answered.get(channel.party, 0) + 1
            except InvalidReply as error:
                facts.refuse(channel.party, str(error))
                if p not in replies:
                    there.discard(p)
        return found

    def finish(self, grid: Grid, server_round: int, waiting: Waiting, facts: RoundFacts) -> None:
        """Brings the last gradients of a round."""
        replies = self._sent(
            grid,
            {
                p: request(self.nodes[p], BACKWARD, server_round, gradient=gradient)
                for p, gradient in waiting.items()
            },
        )
        for p in waiting:
            name = self.channels[p].party
            try:
                to_spent(self._reply(replies, p), name)
            except InvalidReply as error:
                facts.refuse(name, str(error))

    def released(
        self, grid: Grid, server_round: int, records: Tensor, facts: RoundFacts | None = None
    ) -> Pieces:
        """Returns embeddings for inference, piece by piece: record numbers and what was received.

        Args:
            grid: Flower's grid.
            server_round: The round.
            records: Record numbers.
            facts: Where refused answers are counted.
        """
        facts = facts or RoundFacts()
        there = self.aligned
        pieces: Pieces = []
        for piece in torch.split(records, RELEASE_ROWS):
            found = self.embeddings(grid, server_round, piece, there, {}, facts, RELEASE)
            pieces.append((piece, [found.get(p, (None, 0))[0] for p in range(len(self.channels))]))
        return pieces

    def save(self, grid: Grid, server_round: int) -> dict[str, dict[str, float]]:
        """Lets the parties write their state down; returns what each says that it has spent."""
        there = sorted(self.aligned)
        replies = self._sent(grid, {p: request(self.nodes[p], SAVE, server_round) for p in there})
        spent: dict[str, dict[str, float]] = {}
        for party in there:
            name = self.channels[party].party
            try:
                spent[name] = to_spent(self._reply(replies, party), name)
            except InvalidReply:
                continue
        return spent

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
        rows = self.rows[party]
        if rows is None:
            raise ValueError(f"party {self.channels[party].party} was not aligned")
        return rows
