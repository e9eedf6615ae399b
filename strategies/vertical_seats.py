"""Where the active party is: at the server, or at a client of its own that the server relays to."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flwr.serverapp import Grid
from torch import Tensor

from fedface.vertical.trainer import ActiveSide, ActiveTrainer, Losses, Pieces


class ActivePartyFailed(RuntimeError):
    """The active party failed, was silent or sent nonsense: nobody can train without labels."""


class ActiveSeat(Protocol):
    """What a vertical strategy needs of the active party, wherever it is.

    Attributes:
        n_nodes: Nodes of the grid that it is: none at the server, or one, the one after the
            passive parties.
    """

    n_nodes: int

    def tokens(self, grid: Grid, node: int | None) -> tuple[str, ...]:
        """Returns the keyed hashes of its records' ids; it lives at ``node``."""

    def start(self, grid: Grid, rows: Tensor, completed: int) -> tuple[Tensor, Tensor]:
        """Tells it which of its records are aligned, in order, after ``completed`` rounds.

        Returns:
            The record numbers that are trained on, and all others; both ascending.
        """

    def steps(
        self,
        grid: Grid,
        server_round: int,
        start: int,
        batches: Sequence[Tensor],
        received: Mapping[int, Tensor],
    ) -> tuple[dict[int, Tensor], list[Losses]]:
        """Lets it step; as :meth:`ActiveTrainer.steps`."""

    def steps_alone(self, grid: Grid, server_round: int, batches: Sequence[Tensor]) -> list[Losses]:
        """Lets it train on what it kept; as :meth:`ActiveTrainer.steps_alone`."""

    def keep(self, grid: Grid, server_round: int, pieces: Pieces) -> None:
        """Lets it keep embeddings; as :meth:`ActiveTrainer.keep`."""

    def measure(self, grid: Grid, server_round: int, pieces: Pieces) -> dict[str, Any]:
        """Returns its figures as plain JSON values; a ValueError says why there are none."""

    def save(self, grid: Grid, server_round: int) -> None:
        """Lets it write its state down, if that is its own matter."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns its state for the server's checkpoint; nothing if it keeps that to itself."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`tensors` returned; after :meth:`start`."""


class HostedActive:
    """The active party at the server: the server holds the labels and the top model."""

    n_nodes = 0

    def __init__(self, side: ActiveSide) -> None:
        """Hosts ``side``."""
        self.side = side
        self._trainer: ActiveTrainer | None = None

    @property
    def trainer(self) -> ActiveTrainer:
        """The active party on the aligned records.

        Raises:
            ValueError: Before :meth:`start`.
        """
        if self._trainer is None:
            raise ValueError("the active party needs aligned records, got none yet")
        return self._trainer

    def tokens(self, grid: Grid, node: int | None) -> tuple[str, ...]:
        """Returns its tokens."""
        return self.side.tokens

    def start(self, grid: Grid, rows: Tensor, completed: int) -> tuple[Tensor, Tensor]:
        """Prepares it; a resumed one is loaded afterwards."""
        self._trainer = self.side.prepare(rows, completed == 0)
        return self._trainer.records.training, self._trainer.records.measured

    def steps(
        self,
        grid: Grid,
        server_round: int,
        start: int,
        batches: Sequence[Tensor],
        received: Mapping[int, Tensor],
    ) -> tuple[dict[int, Tensor], list[Losses]]:
        """Steps here."""
        return self.trainer.steps(server_round, start, batches, received)

    def steps_alone(self, grid: Grid, server_round: int, batches: Sequence[Tensor]) -> list[Losses]:
        """Steps here."""
        return self.trainer.steps_alone(server_round, batches)

    def keep(self, grid: Grid, server_round: int, pieces: Pieces) -> None:
        """Keeps here."""
        self.trainer.keep(pieces)

    def measure(self, grid: Grid, server_round: int, pieces: Pieces) -> dict[str, Any]:
        """Measures here."""
        return self.side.measure(self.trainer, pieces, server_round)

    def save(self, grid: Grid, server_round: int) -> None:
        """Does nothing: its state is in the server's checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns its whole state."""
        return self.trainer.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes its state up."""
        self.trainer.load(tensors)
