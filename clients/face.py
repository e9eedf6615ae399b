"""A site that trains the shared backbone on its own people; its head never leaves it."""

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from clients.arrays import to_record, to_tensors
from clients.private import SiteAccount
from clients.state import SiteState
from fedface import parameters
from fedface.data.tensors import to_float
from fedface.heads import AnyHead
from fedface.parameters import Layout
from fedface.random import stream
from fedface.training.local import HONEST, Hooks, LocalTraining, train_locally
from fedface.training.site_update import SiteUpdate


@dataclass(frozen=True)
class FaceClient:
    """One site: its people's images, the shared backbone and how it trains.

    Attributes:
        client: The site's partition id.
        images: ``(n, h, w, 3)`` uint8 of the site's own people.
        labels: ``(n,)`` int64 in ``0..n_identities - 1``, the rows of the private head.
        n_identities: People of this site.
        backbone: Shared architecture; its weights are overwritten each round.
        head: Settings of the private margin head.
        embedding_size: d of the backbone.
        training: Epochs, batch size, optimiser.
        n_rounds: Rounds of the whole run, for the learning rate's course.
        seed: The run's seed.
        state: Where the head is kept between rounds.
        device: Where to train.
        private: Differential privacy at this site, or None.
    """

    client: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    n_identities: int
    backbone: nn.Module
    head: AnyHead
    embedding_size: int
    training: LocalTraining
    n_rounds: int
    seed: int
    state: SiteState
    device: torch.device
    private: SiteAccount | None = None

    def train(self, message: Message, context: Context) -> Message:
        """Trains from the global weights; replies with the update, buffers and counts.

        Raises:
            ValueError: If the training diverged; the head then stays as it was before the round.
            BudgetSpent: If the site's privacy budget has no room for the round.
        """
        self.receive(message)
        if self.private is None:
            return self.reply(message, context, self.run(message, context))
        weights = Layout.of(self.backbone).flatten(parameters.trainable(self.backbone))
        released = self.private.release(
            context,
            round_of(message),
            weights,
            lambda number: self.run(message, context, number=number),
        )
        return self.reply(message, context, released)

    def run(
        self,
        message: Message,
        context: Context,
        hooks: Hooks = HONEST,
        training: LocalTraining | None = None,
        number: int = 0,
    ) -> SiteUpdate:
        """Returns one training from the received weights, which the backbone holds afterwards.

        It is DP-SGD where the site's privacy says so and nobody asks for hooks or other settings:
        an attacker may look like an honest site, and need not.

        Args:
            message: The round's message, received by :meth:`receive`.
            context: Where the head is kept; not changed.
            hooks: What an attack changes.
            training: Other settings than the site's own.
            number: The charge of the site's privacy account, which names the noise.
        """
        server_round = round_of(message)
        head = self._head(context, server_round)
        layout = Layout.of(self.backbone)
        start, buffers = parameters.trainable(self.backbone), parameters.buffers(self.backbone)
        if (
            self.private is not None
            and self.private.by_example
            and hooks == HONEST
            and not training
        ):
            result = self.private.train(
                self.backbone, head, self.images, self.labels, server_round, number
            )
        else:
            result = train_locally(
                self.backbone,
                head,
                self.images,
                self.labels,
                self.training if training is None else training,
                stream(self.seed, "local training", server_round, self.client),
                server_round,
                self.n_rounds,
                hooks,
            )
        trained = SiteUpdate(
            layout.flatten(parameters.trainable(self.backbone)) - layout.flatten(start),
            parameters.buffers(self.backbone),
            parameters.trainable(head),
            result.n_examples,
            result.n_steps,
            result.loss,
        )
        parameters.load(self.backbone, {**start, **buffers})
        return trained

    def reply(
        self, message: Message, context: Context, trained: SiteUpdate, **records: ArrayRecord
    ) -> Message:
        """Keeps the trained head at the site and returns the reply, ``records`` beside it.

        Raises:
            ValueError: If a weight is not finite; the head then stays as it was.
        """
        if not all(torch.isfinite(v).all() for v in (trained.update, *trained.head.values())):
            raise ValueError(
                f"client {self.client} needs finite weights after round {round_of(message)}, got "
                "NaN or infinity (lower training.optimizer.learning_rate)"
            )
        self.state.save(context, round_of(message), trained.head)
        metrics: dict[str, MetricRecordValues] = {
            "num-examples": trained.n_examples,
            "num-steps": trained.n_steps,
            "loss": trained.loss,
        }
        if self.private is not None:
            metrics |= self.private.metrics(context, round_of(message))
        return reply_with(
            message,
            arrays=to_record(Layout.of(self.backbone).unflatten(trained.update)),
            buffers=to_record(trained.buffers),
            metrics=MetricRecord(metrics),
            **records,
        )

    def evaluate(self, message: Message, context: Context) -> Message:
        """Replies with the global model's loss and accuracy under this site's private head.

        Raises:
            ValueError: If the site has differential privacy: these figures would have none.
        """
        if self.private is not None:
            raise ValueError(
                f"client {self.client} needs evaluation.local: false under differential privacy"
            )
        self.receive(message)
        head = self._head(context, round_of(message) + 1).eval()
        self.backbone.eval()
        loss = correct = 0.0
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(self.images)), 256):
                images = to_float(self.images[index.numpy()]).to(self.device)
                labels = torch.from_numpy(self.labels[index.numpy()]).to(self.device)
                logits = head(self.backbone(images), labels)
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                correct += (logits.argmax(dim=1) == labels).sum().item()
        n = len(self.images)
        metrics = MetricRecord({"num-examples": n, "loss": loss / n, "accuracy": correct / n})
        return reply_with(message, metrics=metrics)

    def receive(self, message: Message) -> None:
        """Loads the global weights and buffers of ``message`` into the backbone.

        Raises:
            ValueError: If they are not those of this backbone: what is missing would else stay as
                another site of this process left it.
        """
        records = message.content.array_records
        tensors = {
            name: value
            for record in ("arrays", "buffers")
            for name, value in to_tensors(records.get(record, ArrayRecord())).items()
        }
        needed = {slot.name for slot in Layout.of(self.backbone).slots}
        needed |= set(parameters.buffers(self.backbone))
        if differing := sorted(set(tensors) ^ needed):
            raise ValueError(
                f"client {self.client} needs the weights of its own backbone, differing: "
                f"{', '.join(differing[:3])} ({len(differing)} names)"
            )
        parameters.load(self.backbone, tensors)

    def _head(self, context: Context, server_round: int) -> nn.Module:
        """The private head as it was before ``server_round``, on the training device."""
        rng = stream(self.seed, "head", self.client)
        head = self.head.build(self.embedding_size, self.n_identities, rng)
        kept = self.state.load(context, server_round, parameters.trainable(head))
        if kept is not None:
            parameters.load(head, kept)
        return head.to(self.device)


def round_of(message: Message) -> int:
    """Returns the round that ``message`` belongs to."""
    return int(str(message.content.config_records["config"]["server-round"]))


def reply_with(message: Message, **records: ArrayRecord | MetricRecord) -> Message:
    """Returns a reply to ``message`` that holds ``records``."""
    return Message(RecordDict(dict(records)), reply_to=message)
