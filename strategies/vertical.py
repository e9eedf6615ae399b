"""Vertical training through messages: mini-batches of many parties, one of which holds the labels.

A step is one exchange with the passive parties: ``train.backward`` carries the gradient of the last
embeddings and asks for the next, so that a party is asked once per step and all parties compute
side by side; several mini-batches may travel in one message. Between two exchanges the active party
steps, wherever it is (:mod:`strategies.vertical_seats`). What stands in for the embeddings of a
party that is missing is :data:`fedface.vertical.missing.Missing`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedface.vertical.alignment import places
from fedface.vertical.trainer import Pieces
from strategies.cohorts import roll_call
from strategies.vertical_parties import PassiveParties, RoundFacts, Waiting
from strategies.vertical_seats import ActiveSeat

__all__ = ["RoundFacts", "VerticalStrategy"]


class VerticalStrategy:
    """Brings the embeddings of passive parties to the active one, and its gradients back.

    Attributes:
        parties: The passive parties.
        seat: Where the active party is.
        n_records: Records of the active party, before alignment.
        training: ``(n_training,)`` int64 record numbers that are trained on; known once started.
        measured: ``(n_measured,)`` int64 all others.
    """

    training: Tensor
    measured: Tensor

    def __init__(self, parties: PassiveParties, seat: ActiveSeat) -> None:
        """Keeps the settings; nothing is sent before :meth:`align`."""
        self.parties = parties
        self.seat = seat
        self.n_records = 0
        self._rows = torch.zeros(0, dtype=torch.int64)

    def align(self, grid: Grid) -> tuple[tuple[str, ...], dict[str, str]]:
        """Finds the records that all have.

        Returns:
            The tokens of the aligned records in order, and passive party -> why it was refused.

        Raises:
            ValueError: If no record is left.
            TooFewClients: If parties are not connected.
            ActivePartyFailed: If the active party fails.
        """
        n_passive = len(self.parties.channels)
        nodes = roll_call(grid, n_passive + self.seat.n_nodes)
        self.parties.nodes = {p: nodes[p] for p in range(n_passive)}
        own = self.seat.tokens(grid, nodes.get(n_passive))
        self.n_records = len(own)
        tokens, refused = self.parties.align(grid, own)
        self._rows = torch.from_numpy(places("active", own, tokens))
        return tokens, refused

    def start(self, grid: Grid, completed: int) -> None:
        """Tells the active party which of its records are aligned, after ``completed`` rounds."""
        self.training, self.measured = self.seat.start(grid, self._rows, completed)

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        batches: Sequence[Tensor],
        present: Iterable[int],
        steps_per_message: int,
        on_step: Callable[[int], None] | None = None,
    ) -> RoundFacts:
        """Trains once on ``batches``.

        Args:
            grid: Flower's grid.
            server_round: The round, from 1.
            batches: Record numbers of each mini-batch.
            present: The parties that are asked; one that stays silent is not asked again.
            steps_per_message: Mini-batches per exchange.
            on_step: Called with the mini-batches done.

        Raises:
            ValueError: If the loss is not finite.
            ActivePartyFailed: If the active party fails: nobody can train without labels.
        """
        facts, there = RoundFacts(), set(present) & self.parties.aligned
        waiting: Waiting = {}
        for start in range(0, len(batches), steps_per_message):
            chunk = batches[start : start + steps_per_message]
            received = self.parties.embeddings(
                grid, server_round, torch.cat(list(chunk)), there, waiting, facts
            )
            gradients, losses = self.seat.steps(
                grid, server_round, start, chunk, {p: z for p, (z, _) in received.items()}
            )
            facts.count(losses)
            waiting = {p: (received[p][1], gradient) for p, gradient in gradients.items()}
            if on_step is not None:
                on_step(start + len(chunk))
        self.parties.finish(grid, server_round, waiting, facts)
        return facts

    def train_alone(self, grid: Grid, server_round: int, batches: Sequence[Tensor]) -> RoundFacts:
        """Trains the active party once on ``batches`` with embeddings that it kept.

        Raises:
            ValueError: If the loss is not finite.
            ActivePartyFailed: If the active party fails.
        """
        facts = RoundFacts()
        facts.count(self.seat.steps_alone(grid, server_round, batches))
        return facts

    def release_to_keep(self, grid: Grid, server_round: int) -> RoundFacts:
        """Asks for one embedding of each training record, which the active party keeps.

        Raises:
            ActivePartyFailed: If the active party fails.
        """
        facts = RoundFacts()
        pieces = self.parties.released(grid, server_round, self.training, facts)
        self.seat.keep(grid, server_round, pieces)
        return facts

    def measure(self, grid: Grid, server_round: int, facts: RoundFacts) -> dict[str, Any]:
        """Returns the figures of the active party on the embeddings of all measured records.

        Args:
            grid: Flower's grid.
            server_round: The round.
            facts: Where refused answers are counted.

        Raises:
            ValueError: If nothing can be measured.
            ActivePartyFailed: If the active party fails.
        """
        pieces: Pieces = self.parties.released(grid, server_round, self.measured, facts)
        return self.seat.measure(grid, server_round, pieces)
