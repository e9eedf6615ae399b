"""Flower without Ray: a grid whose nodes are called when the server pulls their replies."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.engine.flower import FlowerEngine

Tamper = Callable[[int, int, Message], Message | None]
"""(partition id, round, honest reply) -> what arrives instead; None arrives never."""


class InProcessGrid(Grid):
    """A grid of ``n_clients`` nodes that run ``client_app``; one reply arrives at each pull.

    As in Flower, node ids are random, each node keeps its context from message to message and an
    exception in a client becomes an error reply. Replies arrive in random order.
    """

    def __init__(self, client_app: ClientApp, n_clients: int, tamper: Tamper | None = None) -> None:
        self.client_app = client_app
        self.tamper = tamper
        self.contexts = {}
        for partition in range(n_clients):
            node = secrets.randbits(62)
            node_config = {"partition-id": partition, "num-partitions": n_clients}
            self.contexts[node] = Context(1, node, node_config, RecordDict(), {})
        self.waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: object, **kwargs: object) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        due = [i for i in message_ids if i in self.waiting]
        if not due:
            return []
        reply = self._handle(self.waiting.pop(secrets.choice(due)))
        return [] if reply is None else [reply]

    def _handle(self, message: Message) -> Message | None:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            reply = self.client_app(message, context)
        except Exception as error:
            reply = Message(Error(0, repr(error)), reply_to=message)
        if self.tamper is None or message.metadata.message_type != "train":
            return reply
        server_round = int(message.metadata.group_id)
        return self.tamper(int(context.node_config["partition-id"]), server_round, reply)


@contextmanager
def in_process(
    tamper: Tamper | None = None, wrap: Callable[[ClientApp], ClientApp] | None = None
) -> Iterator[list[int]]:
    """Lets every run inside use the in-process grid; yields a list that counts the engine's runs.

    Sets Flower's task identity, without which flwr 1.41 builds no Message outside its own runtime.
    """
    started: list[int] = []

    def run(
        engine: FlowerEngine, server: Callable[[Grid], None], app: ClientApp, n_clients: int
    ) -> None:
        started.append(n_clients)
        server(InProcessGrid(app if wrap is None else wrap(app), n_clients, tamper))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        patch.setattr(FlowerEngine, "run", run)
        yield started
