"""Real sites as a grid: node ids are client ids, and only the run's own sites are asked."""

from collections.abc import Callable, Iterable
from time import monotonic, sleep

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from simulations.deploy.plan import Deployment
from simulations.engine.local_grid import stamped
from strategies.cohorts import CLIENT_ID

SITE = "site"
"""The record that tells a site which client it is."""


class SitesGrid(Grid):
    """Flower's grid, seen as the clients of one run.

    A client is the site that an operator admitted under the name at its place in the deployment:
    nobody is asked who he is. How many have to be there, and for how long to wait for them, is the
    matter of the roster (:mod:`strategies.roster`).
    """

    def __init__(
        self,
        grid: Grid,
        deployment: Deployment,
        timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """Wraps Flower's ``grid``.

        Args:
            grid: Flower's own.
            deployment: The run's sites.
            timeout: Seconds for a round; a message that is older is not delivered any more.
            say: Told who comes and who goes.
        """
        self.grid = grid
        self.deployment = deployment
        self.timeout = timeout
        self.say = say
        self._answers: dict[str, Message] = {}
        self._connected: dict[int, int] = {}
        self._looked = self._pulled = float("-inf")

    def set_run(self, run: Run) -> None:
        """Passes the run on to Flower's grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's run."""
        return self.grid.run

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Raises: Flower has deprecated it."""
        raise NotImplementedError("build a flwr.app.Message instead")

    def get_node_ids(self) -> list[int]:
        """Returns the clients of the run whose sites are connected, ascending."""
        return sorted(self.connected())

    def connected(self) -> dict[int, int]:
        """Returns client -> Flower's node id of the sites that are connected, asked at most once
        in ``poll_seconds``. A name that two nodes bear is believed of neither.
        """
        if monotonic() - self._looked >= self.deployment.poll_seconds:
            nodes: dict[str, list[int]] = {}
            for node in self.grid.get_nodes():
                nodes.setdefault(node.name, []).append(node.node_id)
            there = {
                client: nodes[name][0]
                for client, name in enumerate(self.deployment.sites)
                if len(nodes.get(name, ())) == 1
            }
            for client in sorted(there.keys() ^ self._connected.keys()):
                what = "connected" if client in there else "gone"
                self.say(f"site {self.deployment.sites[client]} (client {client}) is {what}")
            self._connected = there
            self._looked = monotonic()
        return self._connected

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages; the id of one whose site is not connected is empty."""
        return [
            self._answer(message)
            if message.metadata.message_type == MessageType.QUERY
            else self._send(message)
            for message in messages
        ]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there; Flower is asked once in ``poll_seconds``."""
        wanted = list(message_ids)
        own = [self._answers.pop(i) for i in wanted if i in self._answers]
        if own or not wanted or monotonic() - self._pulled < self.deployment.poll_seconds:
            return own
        self._pulled = monotonic()
        return list(self.grid.pull_messages(wanted))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages and returns the replies that came in time."""
        waiting = {i for i in self.push_messages(messages) if i}
        deadline = monotonic() + (self.timeout if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and monotonic() < deadline:
            arrived = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            sleep(0.05)
        return replies

    def _answer(self, message: Message) -> str:
        """The roll call is answered here, from what operators admitted."""
        (message_id,) = stamped([message])
        metrics = MetricRecord({CLIENT_ID: message.metadata.dst_node_id})
        self._answers[message_id] = Message(RecordDict({"metrics": metrics}), reply_to=message)
        return message_id

    def _send(self, message: Message) -> str:
        client, kind = message.metadata.dst_node_id, message.metadata.message_type
        node = self.connected().get(client)
        if node is None:
            return ""
        content = RecordDict({**message.content, SITE: ConfigRecord({CLIENT_ID: client})})
        copy = Message(content, node, kind, ttl=self.timeout, group_id=message.metadata.group_id)
        return next((i for i in self.grid.push_messages([copy]) if i), "")
