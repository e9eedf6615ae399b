"""The active party at work: its records, its steps and the embeddings that it keeps.

Whoever brings the embeddings and takes the gradients away, the server that hosts the active party
or a client that a server relays to, calls the same methods: results do not depend on which.
Nothing here knows a network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedface.data.tensors import to_float
from fedface.vertical.active import ActiveParty
from fedface.vertical.passive import part

Received = list[Tensor | None]
"""Party by party ``(n, dim)`` embeddings, None where one is missing."""

Pieces = list[tuple[Tensor, Received]]
"""Record numbers ``(n,)`` int64, and the embeddings that were received for them."""

Augmented = Callable[[Tensor, int, int], Tensor]
"""(own views, round, number of the mini-batch in it) -> changed own views."""

_KEPT = "kept"


class Losses(NamedTuple):
    """The losses of one step: in all, of the task, of the distribution."""

    loss: float
    task_loss: float
    distribution_loss: float


@dataclass(frozen=True)
class ActiveRecords:
    """What the active party has of the aligned records, in the order of their numbers.

    Attributes:
        rows: ``(n,)`` int64 which of its own records each is.
        labels: ``(n,)`` int64, the enrolled person or, for strangers, anything.
        own: ``(n, h, w, 3)`` uint8 own views, or None.
        training: ``(n_training,)`` int64 the numbers of those that are trained on, ascending.
        measured: ``(n_measured,)`` int64 the numbers of all others, ascending.
    """

    rows: Tensor
    labels: Tensor
    own: NDArray[np.uint8] | None
    training: Tensor
    measured: Tensor

    def views(self, records: Tensor, device: torch.device) -> Tensor | None:
        """Returns the own views of ``records`` in [-1, 1] on ``device``, or None."""
        return None if self.own is None else to_float(self.own[records.numpy()]).to(device)


class ActiveTrainer:
    """The active party with its records.

    Attributes:
        party: Top model, head and optimiser.
        records: The aligned records.
        device: Where it computes.
        kept: Party by party ``(n, dim)`` embeddings of training records for the epochs alone,
            None for a party that none are kept of; or None as a whole before any are kept.
    """

    def __init__(
        self,
        party: ActiveParty,
        records: ActiveRecords,
        augmented: Augmented,
        device: torch.device,
        n_rounds: int,
        alone: bool = False,
        keeps_round: int | None = None,
    ) -> None:
        """Starts with ``party`` as it is.

        Args:
            party: On ``device`` already.
            records: Its records.
            augmented: How own views are changed in training.
            device: Where it computes.
            n_rounds: All rounds of the run, for the learning rate's course.
            alone: Whether each step sees one party at a time, the others missing.
            keeps_round: The round whose embeddings are kept, or None.
        """
        self.party = party
        self.records = records
        self.augmented = augmented
        self.device = device
        self.n_rounds = n_rounds
        self.alone = alone
        self.keeps_round = keeps_round
        self.kept: Received | None = None
        self._trains = torch.zeros(len(records.labels), dtype=torch.bool)
        self._trains[records.training] = True

    def steps(
        self,
        server_round: int,
        start: int,
        batches: Sequence[Tensor],
        received: Mapping[int, Tensor],
    ) -> tuple[dict[int, Tensor], list[Losses]]:
        """Steps on each mini-batch of one exchange.

        Args:
            server_round: From 1.
            start: The number of the first of these mini-batches in the round.
            batches: Record numbers of each mini-batch.
            received: Passive party -> ``(n, dim)`` embeddings, n being the records of all these
                mini-batches; a party that is missing is left out.

        Returns:
            Passive party -> ``(n, dim)`` gradients on the CPU, for all in ``received``; the losses
            of each step.

        Raises:
            ValueError: If a record is no training record, embeddings are refused or the loss is
                not finite; see :meth:`ActiveParty.step`.
        """
        records = torch.cat(list(batches))
        self._check(records)
        here = {p: z.to(self.device) for p, z in received.items()}
        for p, z in here.items():
            self.party.channels[p].check(z, len(records))
        if server_round == self.keeps_round:
            if start == 0 or self.kept is None:
                self.kept = list(self._nothing_kept())
            self._write_down(self.kept, records, here)
        self.party.start_round(server_round, self.n_rounds)
        gradients: dict[int, list[Tensor]] = {p: [] for p in here}
        losses: list[Losses] = []
        offset = 0
        for number, batch in enumerate(batches, start):
            stop = offset + len(batch)
            z_batch: Received = [
                here[p][offset:stop] if p in here else None for p in range(self._n_parties)
            ]
            found = self._step(server_round, number, batch, z_batch, losses)
            for p, gradient in found.items():
                gradients[p].append(gradient)
            offset = stop
        return {p: torch.cat(parts) for p, parts in gradients.items() if parts}, losses

    def steps_alone(self, server_round: int, batches: Sequence[Tensor]) -> list[Losses]:
        """Trains once on ``batches`` with the embeddings that are kept; returns the losses.

        Raises:
            ValueError: As :meth:`steps`.
        """
        for records in batches:
            self._check(records)
        kept: Received = [None] * self._n_parties if self.kept is None else self.kept
        if server_round - 1 == self.keeps_round:
            kept = [self._stood_in(p, z) for p, z in enumerate(kept)]
        self.kept = kept
        self.party.start_round(server_round, self.n_rounds)
        losses: list[Losses] = []
        for number, records in enumerate(batches):
            z: Received = [None if values is None else values[records] for values in kept]
            self._step(server_round, number, records, z, losses)
        return losses

    def keep(self, pieces: Pieces) -> None:
        """Keeps embeddings of training records, for :meth:`steps_alone`.

        A record whose embedding did not arrive is stood in for like any missing one.

        Raises:
            ValueError: If a record is no training record or embeddings are refused.
        """
        kept: Received = list(self._nothing_kept())
        for records, received in pieces:
            self._check(records)
            there = {p: z.to(self.device) for p, z in enumerate(received) if z is not None}
            for p, z in there.items():
                self.party.channels[p].check(z, len(records))
            self._write_down(kept, records, there)
        self.kept = [self._stood_in(p, z) for p, z in enumerate(kept)]

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that a resumed active party needs, by name."""
        kept = {
            f"{_KEPT}.{p}": values.detach().cpu().clone()
            for p, values in enumerate(self.kept or ())
            if values is not None
        }
        return {**self.party.tensors(), **kept}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the active party into the state that :meth:`tensors` returned.

        Raises:
            KeyError: If a name is unknown.
            ValueError: If a shape differs.
        """
        kept = part(tensors, _KEPT)
        self.party.load({k: v for k, v in tensors.items() if not k.startswith(f"{_KEPT}.")})
        self.kept = None
        if kept:
            found = [kept.get(str(p)) for p in range(self._n_parties)]
            self.kept = [None if z is None else z.to(self.device) for z in found]

    @property
    def _n_parties(self) -> int:
        return len(self.party.channels)

    def _step(
        self,
        server_round: int,
        number: int,
        records: Tensor,
        z: Received,
        losses: list[Losses],
    ) -> dict[int, Tensor]:
        """One mini-batch, with all parties together or each alone; party -> its gradient."""
        own = self.records.views(records, self.device)
        if own is not None:
            own = self.augmented(own, server_round, number)
        there = [p for p, values in enumerate(z) if values is not None]
        if not there and own is None:
            return {}
        labels = self.records.labels[records].to(self.device)
        numbers = records.to(self.device)
        gradients: dict[int, Tensor] = {}
        for seen in [[p] for p in there] if self.alone else [there]:
            shown: Received = [values if p in seen else None for p, values in enumerate(z)]
            step = self.party.step(own, shown, labels, numbers)
            losses.append(Losses(step.loss, step.task_loss, step.distribution_loss))
            for p in seen:
                gradient = step.gradients[p]
                if gradient is not None:
                    gradients[p] = gradient.cpu()
        return gradients

    def _check(self, records: Tensor) -> None:
        """Refuses records that nobody may train on: strangers, and those kept to measure on."""
        n = len(self._trains)
        known = records[(records >= 0) & (records < n)]
        wrong = len(records) - int(self._trains[known].sum())
        if wrong:
            raise ValueError(
                f"the active party needs training records of 0..{n - 1}, got {wrong} others"
            )

    def _nothing_kept(self) -> list[Tensor]:
        """Party by party one row for each record, NaN where nothing was received."""
        n = len(self.records.labels)
        return [torch.full((n, c.dim), torch.nan, device=self.device) for c in self.party.channels]

    @staticmethod
    def _write_down(kept: Received, records: Tensor, received: Mapping[int, Tensor]) -> None:
        for p, z in received.items():
            values = kept[p]
            if values is not None:
                values[records] = z

    def _stood_in(self, party: int, kept: Tensor | None) -> Tensor | None:
        """The kept embeddings of a party, others in place of those that did not arrive."""
        if kept is None or bool(kept[self.records.training].isnan().all()):
            return None
        missing = kept.isnan().any(1)
        stand_ins = self.party.model.substitutes[party](torch.arange(len(kept), device=self.device))
        return torch.where(missing[:, None], stand_ins, kept)


@dataclass(frozen=True)
class ActiveSide:
    """What the active party brings, before anybody knows which records are aligned.

    Attributes:
        tokens: The keyed hashes of its records' ids, row by row.
        prepare: (rows of the aligned records, whether it starts anew and is not loaded) -> the
            active party on these records.
        measure: (the active party, embeddings of all measured records, round) -> figures, as plain
            JSON values; a ValueError says why nothing could be measured.
    """

    tokens: tuple[str, ...]
    prepare: Callable[[Tensor, bool], ActiveTrainer]
    measure: Callable[[ActiveTrainer, Pieces, int], dict[str, Any]]
