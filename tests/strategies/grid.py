"""A Flower grid of plain functions, and the functions that tests put on it."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from torch import Tensor

from fedface.random import stream
from strategies.records import to_record, to_tensors

Client = Callable[[Message], Message | None]
"""Answers a message, or stays silent with None; an exception becomes an error reply."""

Tamper = Callable[[Message, RecordDict], RecordDict | Error | None]
"""(message, honest reply) -> what is replied instead; None is silence."""


class InProcessGrid(Grid):
    """Each client is a node with a random id; replies come in random order, some at a time.

    Attributes:
        nodes: Node id -> client.
        asked: The nodes that got a message, with its type, in order.
        joins: Node id -> how many looks at the list of nodes it misses (it connects late).
        delays: Node id -> how many looks at the mailbox its replies miss.
        gone: Nodes that the grid takes no message for (it says None, as Flower's HTTP grid does).
        twice: Whether every reply is delivered twice.
    """

    def __init__(self, clients: Sequence[Client], seed: int = 0) -> None:
        self.rng = random.Random(seed)
        ids = self.rng.sample(range(2**62), len(clients))
        self.nodes = dict(zip(ids, clients, strict=True))
        self.asked: list[tuple[int, str]] = []
        self.joins: dict[int, int] = {}
        self.delays: dict[int, int] = {}
        self.gone: set[int] = set()
        self.twice = False
        self._mailbox: dict[str, tuple[int, Message]] = {}

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        present = [node for node in self.nodes if self.joins.get(node, 0) <= 0]
        self.joins = {node: looks - 1 for node, looks in self.joins.items()}
        return self.rng.sample(present, len(present))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked_for = [i for i in message_ids if i in self._mailbox]
        self.rng.shuffle(asked_for)
        arrived = []
        for message_id in asked_for:
            looks, reply = self._mailbox.pop(message_id)
            if looks > 0:
                self._mailbox[message_id] = (looks - 1, reply)
            else:
                arrived += [reply] * (1 + self.twice)
        return arrived

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        for _ in range(100):
            replies += self.pull_messages(waiting)
        return replies

    def _push(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node in self.gone:
            return None  # type: ignore[return-value]
        message_id = str(uuid4())
        message.metadata.__dict__["_message_id"] = message_id
        self.asked.append((node, message.metadata.message_type))
        try:
            reply = self.nodes[node](message)
        except Exception as error:
            reply = Message(Error(0, repr(error)), reply_to=message)
        if reply is not None:
            self._mailbox[message_id] = (self.delays.get(node, 0), reply)
        return message_id


def names_itself(partition_id: int) -> Client:
    """A node that answers every message with its partition id."""

    def client(message: Message) -> Message:
        metrics = MetricRecord({"partition-id": partition_id})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return client


def silent(message: Message) -> None:
    """A node that never answers."""


def failing(message: Message) -> Message:
    """A node whose program raises."""
    raise RuntimeError("out of\nmemory")


def drawn_update(partition_id: int, server_round: int, like: Mapping[str, Tensor]) -> dict:
    """What client ``partition_id`` replies in ``server_round``: random, but always the same."""
    rng = stream(7, "test update", partition_id, server_round)
    return {name: torch.randn(value.shape, generator=rng) for name, value in like.items()}


def examples_of(partition_id: int) -> int:
    """The images that client ``partition_id`` has: 10, 20, 30 ..."""
    return 10 * (partition_id + 1)


def site(partition_id: int, tamper: Tamper | None = None, sends_weights: bool = False) -> Client:
    """An honest client of random updates; ``tamper`` changes its train replies.

    With ``sends_weights`` it replies like a client of Flower's FedAvg.
    """

    def client(message: Message) -> Message | None:
        if message.metadata.message_type == "query":
            return names_itself(partition_id)(message)
        n = examples_of(partition_id)
        if message.metadata.message_type == "evaluate":
            metrics = {"num-examples": n, "loss": 1.0 + partition_id, "accuracy": 1 / n}
            return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
        weights = to_tensors(message.content.array_records["arrays"])
        server_round = int(message.content.config_records["config"]["server-round"])
        update = drawn_update(partition_id, server_round, weights)
        if sends_weights:
            update = {name: weights[name] + update[name] for name in weights}
        metrics = {"num-examples": n, "loss": 1.0 + partition_id}
        if not sends_weights:
            metrics["num-steps"] = 3
        content = RecordDict({"arrays": to_record(update), "metrics": MetricRecord(metrics)})
        buffers = message.content.array_records.get("buffers", ArrayRecord())
        if buffers:
            content["buffers"] = to_record(
                {name: b + partition_id for name, b in to_tensors(buffers).items()}
            )
        reply = content if tamper is None else tamper(message, content)
        return None if reply is None else Message(reply, reply_to=message)

    return client
