"""The active party of a vertical federation as a client: labels, top model and head stay here.

It answers ``query.align`` with the tokens of its records, ``train.start`` with the numbers of those
that are trained on and of those that are measured, ``train.steps`` (embeddings in) with gradients
and losses, ``train.alone`` (mini-batches of embeddings that it keeps) with losses, ``train.keep``
by keeping embeddings, ``evaluate.measure`` with figures, and ``train.save`` by writing its state
down. Labels, own views and weights are in none of the replies; gradients and losses follow from the
labels, and whoever relays them can read much of the labels off.

Whatever is wrong with a message is refused with an error; the party is then what it was before.
"""

import json
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from torch import Tensor

from clients.vertical_messages import START, continued, reply_to, round_of
from clients.vertical_state import PartyMemory, PartyState
from fedface.vertical.passive import part
from fedface.vertical.trainer import ActiveSide, ActiveTrainer, Losses, Pieces

_ROWS, _ROUND, _TRAINER = "aligned.rows", "aligned.round", "active"


class ActiveClient:
    """The active party at a node of its own.

    Attributes:
        side: What it brings.
        state: Where it remembers, between messages and for a resumed run.
    """

    def __init__(self, side: ActiveSide, state: PartyState) -> None:
        """Keeps what it is given; the model is built when records are aligned."""
        self.side = side
        self.state = state
        self._live: tuple[ActiveTrainer, PartyMemory] | None = None

    def align(self, message: Message, context: Context) -> Message:
        """Replies with the tokens of its records, in the order of its rows."""
        return reply_to(message, alignment=ConfigRecord({"tokens": list(self.side.tokens)}))

    def start(self, message: Message, context: Context) -> Message:
        """Prepares itself on the aligned records, or takes up what it saved.

        Raises:
            ValueError: If it did not save the round before, or saved it for other records.
        """
        rows = _array(message, "aligned", "rows")
        completed = round_of(message) - 1
        memory = self.state.load(context, completed + 1) if completed else None
        self._live = None
        if memory is None and completed:
            raise ValueError(
                f"the active party needs the state that it saved after round {completed}, "
                "found none"
            )
        if memory is None:
            trainer = self.side.prepare(rows, True)
            memory = PartyMemory({_ROWS: rows, _ROUND: torch.tensor(0)}, continued(START, message))
        else:
            saved = int(memory.tensors[_ROUND])
            if saved != completed or not torch.equal(memory.tensors[_ROWS], rows):
                raise ValueError(
                    f"the active party needs the {len(memory.tensors[_ROWS])} aligned records that "
                    f"it saved after round {saved}, got {len(rows)} after round {completed}"
                )
            trainer = self._prepared(memory)
        self._keep(context, trainer, memory)
        records = trainer.records
        return reply_to(
            message,
            numbers=_arrays({"training": records.training, "measured": records.measured}),
        )

    def steps(self, message: Message, context: Context) -> Message:
        """Steps on the embeddings that came; replies with gradients and losses.

        Raises:
            ValueError: If records or embeddings are refused, or the loss is not finite.
        """
        trainer, memory = self._remembered(message, context)
        self._live = None  # until everything went well: else the context says what it was
        received = {int(name): z for name, z in _embeddings(message).items()}
        self._require_parties(trainer, set(received))
        config = message.content.config_records["config"]
        gradients, losses = trainer.steps(
            round_of(message), int(str(config["start"])), _batches(message), received
        )
        self._act(message, context, trainer, memory)
        if not gradients:
            return reply_to(message, losses=_losses(losses))
        named = {str(p): gradient for p, gradient in gradients.items()}
        return reply_to(message, losses=_losses(losses), gradients=_arrays(named))

    def alone(self, message: Message, context: Context) -> Message:
        """Steps on mini-batches of embeddings that it keeps; replies with losses."""
        trainer, memory = self._remembered(message, context)
        self._live = None
        losses = trainer.steps_alone(round_of(message), _batches(message))
        self._act(message, context, trainer, memory)
        return reply_to(message, losses=_losses(losses))

    def keep(self, message: Message, context: Context) -> Message:
        """Keeps the embeddings that came, for the epochs alone."""
        trainer, memory = self._remembered(message, context)
        self._live = None
        trainer.keep(self._pieces(message, trainer))
        self._act(message, context, trainer, memory)
        return reply_to(message, metrics=MetricRecord({}))

    def measure(self, message: Message, context: Context) -> Message:
        """Replies with the figures on the embeddings that came, or why there are none."""
        trainer, _ = self._remembered(message, context)
        pieces = self._pieces(message, trainer)
        try:
            figures = self.side.measure(trainer, pieces, round_of(message))
        except ValueError as error:
            figures = {"failed": str(error)}
        text = json.dumps(figures, allow_nan=False)
        return reply_to(message, figures=ConfigRecord({"json": text}))

    def save(self, message: Message, context: Context) -> Message:
        """Writes its state down for a resumed run."""
        trainer, memory = self._remembered(message, context)
        server_round = round_of(message)
        tensors = {**memory.tensors, _ROUND: torch.tensor(server_round)}
        memory = replace(memory, tensors=tensors)
        self._keep(context, trainer, memory)
        self.state.save(self._whole(trainer, memory), server_round)
        return reply_to(message, metrics=MetricRecord({}))

    # ---- state

    def _act(
        self, message: Message, context: Context, trainer: ActiveTrainer, memory: PartyMemory
    ) -> None:
        """Remembers what it is after acting on ``message``."""
        transcript = continued(memory.transcript, message)
        self._keep(context, trainer, replace(memory, transcript=transcript))

    def _keep(self, context: Context, trainer: ActiveTrainer, memory: PartyMemory) -> None:
        whole = self._whole(trainer, memory)
        self.state.keep(context, whole)
        self._live = trainer, whole

    @staticmethod
    def _whole(trainer: ActiveTrainer, memory: PartyMemory) -> PartyMemory:
        own = {f"{_TRAINER}.{name}": value for name, value in trainer.tensors().items()}
        aligned = {name: memory.tensors[name] for name in (_ROWS, _ROUND)}
        return replace(memory, tensors={**aligned, **own})

    def _prepared(self, memory: PartyMemory) -> ActiveTrainer:
        trainer = self.side.prepare(memory.tensors[_ROWS], False)
        trainer.load(part(memory.tensors, _TRAINER))
        return trainer

    def _remembered(self, message: Message, context: Context) -> tuple[ActiveTrainer, PartyMemory]:
        """The party as it was after the last message that it acted on, whichever worker did."""
        live, transcript = self._live, self.state.transcript(context)
        if live is not None and live[1].transcript == transcript:
            return live
        if transcript is None:
            raise ValueError("the active party needs train.start first, got another message")
        memory = self.state.load(context, round_of(message))
        if memory is None:
            raise ValueError("the active party needs its memory, found none")
        return self._prepared(memory), memory

    # ---- messages

    def _pieces(self, message: Message, trainer: ActiveTrainer) -> Pieces:
        """Record numbers of each piece, and the embeddings that came for them."""
        n_parties = len(trainer.party.channels)
        named = {tuple(map(int, name.split("."))): z for name, z in _embeddings(message).items()}
        pieces: Pieces = [
            (records, [named.pop((number, p), None) for p in range(n_parties)])
            for number, records in enumerate(_batches(message))
        ]
        if named:
            raise ValueError(
                f"the active party needs embeddings of {n_parties} parties for {len(pieces)} "
                f"pieces, got one of (piece, party) {next(iter(named))}"
            )
        return pieces

    @staticmethod
    def _require_parties(trainer: ActiveTrainer, received: set[int]) -> None:
        n_parties = len(trainer.party.channels)
        if unknown := sorted(received - {*range(n_parties)}):
            raise ValueError(
                f"the active party needs embeddings of parties 0..{n_parties - 1}, got {unknown}"
            )


def _embeddings(message: Message) -> dict[str, Tensor]:
    """What the passive parties released, by name; none if nobody did."""
    record = message.content.array_records.get("embeddings", ArrayRecord())
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def _array(message: Message, record: str, name: str) -> Tensor:
    """One array of whole numbers."""
    values = message.content.array_records[record][name].numpy()
    if values.ndim != 1 or values.dtype != np.int64:
        raise ValueError(
            f"the active party needs {record}[{name}] of shape (n,) int64, "
            f"got {values.shape} {values.dtype}"
        )
    return torch.from_numpy(np.array(values))


def _batches(message: Message) -> list[Tensor]:
    """The record numbers of each mini-batch or piece."""
    records, sizes = _array(message, "batch", "records"), _array(message, "batch", "sizes")
    if not len(sizes) or int(sizes.min()) < 0 or int(sizes.sum()) != len(records):
        raise ValueError(
            f"the active party needs sizes that add up to {len(records)} records, "
            f"got {sizes.tolist()[:10]}"
        )
    return list(torch.split(records, sizes.tolist()))


def _arrays(tensors: dict[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(t.contiguous().numpy()) for name, t in tensors.items()})


def _losses(losses: list[Losses]) -> ArrayRecord:
    return ArrayRecord({"losses": Array(np.array(losses, dtype=np.float64).reshape(-1, 3))})
