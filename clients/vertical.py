"""A passive party of a vertical federation: its view of the people, noisy embeddings out.

It answers ``query.align`` with the tokens of its records, ``train.embed`` and ``train.backward``
with embeddings of the rows asked for (``train.backward`` first steps along the gradient of the
release before), ``evaluate.embed`` with embeddings that are released once and then repeated, and
``train.save`` with what it has spent. Whatever is wrong with a message is refused with an error
that names the party; its state is then what it was before the message.

**The noise** follows from the party's secret and a digest of every message that it has acted on.
The same messages from the same state give the same embeddings (a resumed run, a message that is
tried again on another worker); any other message gives fresh noise, so a server that asks twice
under one number never sees two embeddings under the same noise.
"""

from dataclasses import replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from numpy.typing import NDArray
from torch import Tensor

from clients.vertical_messages import START, continued, reply_to, round_of
from clients.vertical_state import PartyMemory, PartyState
from fedface.random import stream
from fedface.vertical.augmentation import Augmentation
from fedface.vertical.passive import PassiveParty, PassiveSettings
from fedface.vertical.pretraining import Pretraining, pretrain_party
from fedface.vertical.views import features

View = NDArray[np.uint8] | NDArray[np.float32]
"""``(n, h, w, 3)`` uint8 pictures, or ``(n, k)`` float32 attributes."""

Public = tuple[View, NDArray[np.int64]]
"""The party's view of the public people, and ``(n,)`` whom they show."""


class VerticalClient:
    """One passive party.

    Attributes:
        party: Its number, the partition id.
        name: The name of its view.
        images: Its view of its records, pictures or attributes; row i is what others call row i.
        tokens: ``(n,)`` the keyed hash of each record's id.
    """

    def __init__(
        self,
        party: int,
        name: str,
        images: View,
        tokens: tuple[str, ...],
        settings: PassiveSettings,
        augmentation: Augmentation,
        pretraining: Pretraining | None,
        public: Public | None,
        n_rounds: int,
        seed: int,
        secret: int,
        state: PartyState,
        device: torch.device,
    ) -> None:
        """Keeps what it is given; models are built with the first message.

        Args:
            party: See the attributes, as for the next three.
            name: Its view.
            images: Its views.
            tokens: Of its records.
            settings: Bottom model, scale, release and optimiser.
            augmentation: How training views are changed.
            pretraining: How the bottom model is trained on ``public`` first, or None.
            public: The public people, or None.
            n_rounds: Rounds with gradients, for the learning rate's course.
            seed: The run's seed: first weights and pretraining follow from it.
            secret: The seed of its noise, which never leaves it.
            state: Where it remembers.
            device: Where it computes.
        """
        self.party = party
        self.name = name
        self.images = images
        self.tokens = tokens
        self.settings = settings
        self.augmentation = augmentation
        self.pretraining = pretraining
        self.public = public
        self.n_rounds = n_rounds
        self.seed = seed
        self.secret = secret
        self.state = state
        self.device = device
        self._live: tuple[PassiveParty, PartyMemory] | None = None

    def align(self, message: Message, context: Context) -> Message:
        """Replies with the tokens of its records, in the order of its rows."""
        return reply_to(message, alignment=ConfigRecord({"tokens": list(self.tokens)}))

    def train(self, message: Message, context: Context) -> Message:
        """Steps along the gradient, if one came, and releases the rows asked for, if any.

        Raises:
            ValueError: If rows are unknown, the gradient answers another release or has another
                shape, or a record has no release left.
        """
        with_gradient = message.metadata.message_type == "train.backward"
        party, memory = self._remembered(message, context)
        self._live = None  # until everything went well: else the context says what it was
        party.start_round(round_of(message), max(self.n_rounds, 1))
        if with_gradient:
            party.backward(self._gradient(message, memory).to(self.device))
            memory = replace(memory, pending=(), is_stale=True)
        rows = self._rows(message)
        memory = replace(memory, transcript=continued(memory.transcript, message))
        if rows is None:
            memory = replace(memory, tensors=party.tensors(), pending=())
            self._keep(context, party, memory)
            return reply_to(message, metrics=MetricRecord({"release": memory.n_released}))
        before = party.tensors()
        z = self._embedded(party, rows, memory.transcript)
        memory = replace(
            memory,
            tensors=before,
            n_released=memory.n_released + 1,
            pending=tuple(rows.tolist()),
        )
        self._keep(context, party, memory)
        return _released(message, z, rows, memory.n_released)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Replies with embeddings of the rows asked for, each released once per bottom model.

        Raises:
            ValueError: If rows are unknown or a record has no release left.
        """
        party, memory = self._remembered(message, context)
        self._live = None
        rows = self._rows(message)
        if rows is None:
            raise ValueError(f"party {self.name} needs rows to embed, got none")
        if memory.is_stale:
            party.forget()
        memory = replace(
            memory, transcript=continued(memory.transcript, message), pending=(), is_stale=False
        )
        z = party.embed_once(
            features(self.images[rows.numpy()]).to(self.device),
            rows,
            stream(self.secret, "inference noise", memory.transcript),
        )
        self._keep(context, party, replace(memory, tensors=party.tensors()))
        return _released(message, z, rows, memory.n_released)

    def save(self, message: Message, context: Context) -> Message:
        """Writes its state down for a resumed run and replies with what it has spent."""
        party, memory = self._remembered(message, context)
        memory = replace(memory, tensors=party.tensors(), pending=())
        self._keep(context, party, memory)
        self.state.save(memory, round_of(message))
        metrics = MetricRecord({"release": memory.n_released})
        if party.ledger is not None:
            spent = party.ledger.spent()
            metrics["replace-one"] = spent.replace_one
            metrics["zero-out"] = spent.zero_out
            metrics["most-releases"] = int(party.ledger.counts.max())
            metrics["all-releases"] = int(party.ledger.counts.sum())
        return reply_to(message, metrics=metrics)

    # ---- state

    def _keep(self, context: Context, party: PassiveParty, memory: PartyMemory) -> None:
        self.state.keep(context, memory)
        self._live = party, memory

    def _remembered(self, message: Message, context: Context) -> tuple[PassiveParty, PartyMemory]:
        """The party as it was after the last message that it acted on, whichever worker did."""
        live, transcript = self._live, self.state.transcript(context)
        if live is not None and live[1].transcript == transcript:
            return live
        memory = self.state.load(context, round_of(message))
        party = self.settings.build(
            self.images.shape[1],
            len(self.images),
            stream(self.seed, "passive party", self.party),
            self.images.shape[1] if self.images.ndim == 2 else None,
        )
        party.bottom.to(self.device)
        party.scale.to(self.device)
        if memory is None:
            self._pretrain(party)
            return party, PartyMemory(party.tensors(), START)
        party.load(memory.tensors)
        if memory.pending:
            self._embedded(party, torch.tensor(memory.pending), memory.transcript)
        return party, memory

    def _pretrain(self, party: PassiveParty) -> None:
        if self.pretraining is None or self.public is None:
            return
        pretrain_party(
            party,
            features(self.public[0]),
            torch.from_numpy(self.public[1]),
            self.pretraining,
            self.augmentation,
            stream(self.seed, "pretraining", self.party),
        )

    def _embedded(self, party: PassiveParty, rows: Tensor, transcript: str) -> Tensor:
        """A training release of ``rows``; the same again for the same state and transcript."""
        changes = stream(self.secret, "augmentation", transcript)
        batch = self.augmentation(features(self.images[rows.numpy()]), changes)
        return party.embed(
            batch.to(self.device), rows, stream(self.secret, "training noise", transcript)
        )

    # ---- messages

    def _rows(self, message: Message) -> Tensor | None:
        """The rows asked for, checked, or None if none are."""
        request = message.content.array_records.get("request")
        if request is None:
            return None
        rows = request["rows"].numpy()
        if rows.ndim != 1 or rows.dtype != np.int64 or not len(rows):
            raise ValueError(
                f"party {self.name} needs rows of shape (n >= 1,) int64, "
                f"got {rows.shape} {rows.dtype}"
            )
        unknown = rows[(rows < 0) | (rows >= len(self.images))]
        if len(unknown):
            raise ValueError(
                f"party {self.name} needs rows that it holds, 0..{len(self.images) - 1}, "
                f"got {len(unknown)} unknown, the first is {int(unknown[0])}"
            )
        return torch.from_numpy(np.array(rows))

    def _gradient(self, message: Message, memory: PartyMemory) -> Tensor:
        """The gradient of the release that waits for it; its values are checked by the party."""
        answers = int(str(message.content.config_records["config"]["answers"]))
        if not memory.pending or answers != memory.n_released:
            waiting = memory.n_released if memory.pending else "none"
            raise ValueError(
                f"party {self.name} needs the gradient of the release that waits for it, "
                f"{waiting}, got that of {answers}"
            )
        values = message.content.array_records["gradients"]["z"].numpy()
        return torch.from_numpy(np.array(values, dtype=np.float32))


def _released(message: Message, z: Tensor, rows: Tensor, n_released: int) -> Message:
    return reply_to(
        message,
        embeddings=ArrayRecord({"z": Array(z.cpu().float().numpy())}),
        records=ArrayRecord({"rows": Array(rows.numpy())}),
        metrics=MetricRecord({"release": n_released}),
    )
