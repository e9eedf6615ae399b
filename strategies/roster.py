"""Which node holds which client: asked when a run starts, and looked at again in every round.

Sites connect late, vanish and come back under another node id. A run starts when enough of them
are there, and goes on with whoever is.
"""

import logging
from time import monotonic, sleep

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from strategies.mailbox import collect, send

CLIENT_ID = "partition-id"
_PAUSE_SECONDS = 0.1


class TooFewClients(RuntimeError):
    """Fewer clients are connected than the run needs."""


class Roster:
    """The nodes of a federation of ``n_clients`` clients, ids ``0..n_clients - 1``.

    A node is believed when it is the only one that claims its id. Once believed it is until it
    leaves: a second node that claims the same id (two sites with one key or one configuration)
    gets nothing but a line in the log.

    Attributes:
        n_clients: Clients of the federation.
        nodes: Client -> node, ascending, of those that are believed.
    """

    def __init__(self, n_clients: int) -> None:
        """Knows nobody yet."""
        self.n_clients = n_clients
        self.nodes: dict[int, int] = {}
        self._claims: dict[int, int] = {}
        self._waiting: dict[str, int] = {}
        self._settled = False

    def call(self, grid: Grid, n_needed: int, timeout: float) -> None:
        """Asks every connected node who it is, those that come late too, and waits for all.

        It ends when every id has one node and every node has answered: a quick liar is not believed
        before the honest node spoke. A node that stays silent thus costs ``timeout``, no more.

        Args:
            grid: Flower's grid.
            n_needed: How many clients must be there in the end.
            timeout: Seconds to wait for all of them.

        Raises:
            TooFewClients: If fewer than ``n_needed`` ids have exactly one node in time.
        """
        deadline = monotonic() + timeout
        while True:
            self._look(grid)
            late = monotonic() > deadline
            if len(self.nodes) == self.n_clients and (late or not self._waiting):
                break
            if late and len(self.nodes) >= n_needed:
                break
            if late:
                missing = sorted(set(range(self.n_clients)) - set(self.nodes))
                few = "" if n_needed == self.n_clients else f"{n_needed} of "
                raise TooFewClients(
                    f"federation needs {few}clients 0..{self.n_clients - 1}, each on one node; "
                    f"within {timeout:g} s found {len(self.nodes)}, missing or claimed twice: "
                    f"{missing[:10]}"
                )
            sleep(_PAUSE_SECONDS)
        self._settled = True

    def refresh(self, grid: Grid, n_needed: int, timeout: float) -> None:
        """Looks who has come and gone; waits only while fewer than ``n_needed`` are there.

        Args:
            grid: Flower's grid.
            n_needed: How many a round needs.
            timeout: Seconds to wait for them; afterwards the round has to do with fewer.
        """
        deadline = monotonic() + timeout
        self._look(grid)
        while len(self.nodes) < n_needed and monotonic() < deadline:
            sleep(_PAUSE_SECONDS)
            self._look(grid)

    def why_absent(self, client: int) -> str:
        """Returns why ``client`` has no node."""
        n = list(self._claims.values()).count(client)
        return f"claimed by {n} nodes, none believed" if n > 1 else "not connected"

    def _look(self, grid: Grid) -> None:
        """Takes one look: asks new nodes, hears answers, forgets who left."""
        there = set(grid.get_node_ids())
        self._claims = {node: claim for node, claim in self._claims.items() if node in there}
        self._waiting = {message: node for message, node in self._waiting.items() if node in there}
        new = sorted(there - set(self._claims) - set(self._waiting.values()))
        questions = {node: Message(RecordDict(), node, MessageType.QUERY) for node in new}
        self._waiting |= send(grid, questions)
        for node, reply in collect(grid, self._waiting).items():
            claimed = _claimed_id(reply) if reply.has_content() else None
            if claimed is not None:
                self._claims[node] = claimed
                self._say_if_taken(node, claimed)
        self.nodes = self._believed(there)

    def _believed(self, there: set[int]) -> dict[int, int]:
        kept = {c: n for c, n in self.nodes.items() if n in there} if self._settled else {}
        ids = list(self._claims.values())
        new = {
            claim: node
            for node, claim in self._claims.items()
            if 0 <= claim < self.n_clients and ids.count(claim) == 1
        }
        return dict(sorted((new | kept).items()))

    def _say_if_taken(self, node: int, claimed: int) -> None:
        if self._settled and self.nodes.get(claimed, node) != node:
            logging.getLogger(__name__).warning(
                "node %d claims client %d, which another node holds: not believed", node, claimed
            )


def _claimed_id(reply: Message) -> int | None:
    metrics = reply.content.get("metrics")
    value = metrics.get(CLIENT_ID) if isinstance(metrics, MetricRecord) else None
    return value if isinstance(value, int) else None
