"""A grid whose nodes are function calls in this process."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp

from simulations.engine.local_grid import LocalGrid, answer, stamped


class InProcessGrid(LocalGrid):
    """A message is answered when its reply is pulled."""

    def __init__(self, client_app: ClientApp, n_clients: int) -> None:
        """Clients are calls of ``client_app``."""
        super().__init__(n_clients)
        self.client_app = client_app
        self.waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keeps the messages; returns their ids."""
        new = stamped(messages)
        self.waiting |= new
        return list(new)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answers the first of these messages that has not been answered yet."""
        first = next((i for i in message_ids if i in self.waiting), None)
        if first is None:
            return []
        message = self.waiting.pop(first)
        return [answer(self.client_app, message, self.contexts[message.metadata.dst_node_id])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Answers all messages; nobody waits, so ``timeout`` has no meaning."""
        return [self.pull_messages([i])[0] for i in self.push_messages(messages)]
