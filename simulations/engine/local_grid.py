"""What grids of one machine have in common: a node for each partition, whose context they keep."""

from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RAISED = 0
"""The error code of a client that raised."""


class LocalGrid(Grid):
    """A grid whose node ids are partition ids; how messages are answered is left open."""

    def __init__(self, n_clients: int) -> None:
        """Makes a node, with an empty context, for each of ``n_clients`` partitions."""
        give_identity()
        self.contexts = {
            node: Context(
                1, node, {"partition-id": node, "num-partitions": n_clients}, RecordDict(), {}
            )
            for node in range(n_clients)
        }

    def set_run(self, run: Run) -> None:
        """Raises: the run of this grid is the process that it lives in."""
        raise NotImplementedError("the run of this grid is the process that it lives in")

    @property
    def run(self) -> Run:
        """Raises: the run of this grid is the process that it lives in."""
        raise NotImplementedError("the run of this grid is the process that it lives in")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Raises: Flower has deprecated it."""
        raise NotImplementedError("build a flwr.app.Message instead")

    def get_node_ids(self) -> list[int]:
        """Returns all nodes: none ever leaves."""
        return list(self.contexts)


def give_identity() -> None:
    """Lets this process build messages: flwr 1.41 refuses outside a runtime of its own."""
    for name in ("_task_id", "_run_id", "_node_id"):
        if getattr(TaskIdentity, name, None) is None:
            setattr(TaskIdentity, name, 1)


def stamped(messages: Iterable[Message]) -> dict[str, Message]:
    """Returns the messages by the new ids that they get."""
    by_id = {}
    for message in messages:
        message.metadata.__dict__["_message_id"] = str(uuid4())
        by_id[message.metadata.message_id] = message
    return by_id


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Returns the client's reply; a client that raises replies with the error, in one line."""
    try:
        return app(message, context)
    except Exception as error:
        return Message(Error(RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
