"""Flower without Ray: the run's own ClientApp behind the grid of plain functions."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from simulations.engine.flower import FlowerEngine
from tests.strategies.grid import Client, InProcessGrid

Tamper = Callable[[int, int, Message], Message | None]
"""(partition id, round, reply to a train message) -> what arrives instead; None never arrives."""


def node(app: ClientApp, partition: int, n_clients: int, tamper: Tamper | None) -> Client:
    """A simulated node: it keeps its context from message to message, as in Flower."""
    node_config = {"partition-id": partition, "num-partitions": n_clients}
    context = Context(1, partition, node_config, RecordDict(), {})

    def client(message: Message) -> Message | None:
        try:
            reply = app(message, context)
        except Exception as error:
            reply = Message(Error(0, repr(error)), reply_to=message)
        if tamper is None or message.metadata.message_type != "train":
            return reply
        return tamper(partition, int(message.metadata.group_id.partition(".")[0]), reply)

    return client


@contextmanager
def in_process(tamper: Tamper | None = None) -> Iterator[list[InProcessGrid]]:
    """Lets every run inside use an in-process grid; yields the grids, one for each engine run.

    Sets Flower's task identity, without which flwr 1.41 builds no Message outside its own runtime.
    """
    grids: list[InProcessGrid] = []

    def run(
        engine: FlowerEngine, server: Callable[[Grid], None], app: ClientApp, n_clients: int
    ) -> None:
        nodes = [node(app, partition, n_clients, tamper) for partition in range(n_clients)]
        grids.append(InProcessGrid(nodes, seed=secrets.randbits(32)))
        server(grids[-1])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        patch.setattr(FlowerEngine, "run", run)
        yield grids


def filled_with(value: float, reply: Message) -> Message:
    """``reply`` with every number of the update set to ``value``; error replies as they are."""
    if reply.has_content():
        arrays = reply.content.array_records["arrays"]
        reply.content["arrays"] = ArrayRecord(
            {name: Array(array.numpy() * 0 + value) for name, array in arrays.items()}
        )
    return reply
