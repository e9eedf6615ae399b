"""Which clients take part in a round: sampled by us, over partition ids.

Flower samples over node ids, which are random in every run and drawn with the global ``random``:
two runs of one config would train different sites. Here a client is its partition id.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic, sleep

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedface.random import numpy_stream

CLIENT_ID = "partition-id"


class TooFewClients(RuntimeError):
    """Fewer clients are connected than the run needs."""


def exchange(
    grid: Grid,
    messages: Mapping[int, Message],
    timeout: float,
    on_reply: Callable[[int, Message], None] | None = None,
    poll_seconds: float = 0.05,
) -> dict[int, Message]:
    """Sends each client its message and returns the replies that came within ``timeout``.

    Args:
        grid: Flower's grid.
        messages: Client id -> message.
        timeout: Seconds to wait for all replies.
        on_reply: Called with each client id and reply as it arrives.
        poll_seconds: Pause between two looks at the mailbox.

    Returns:
        Client id -> reply (possibly an error reply). A client that stayed silent is absent.
    """
    waiting = _send(grid, messages)
    replies: dict[int, Message] = {}
    deadline = monotonic() + timeout
    while waiting and monotonic() < deadline:
        arrived = _collect(grid, waiting)
        replies |= arrived
        if on_reply is not None:
            for client, reply in arrived.items():
                on_reply(client, reply)
        if not arrived:
            sleep(poll_seconds)
    return replies


def _send(grid: Grid, messages: Mapping[int, Message]) -> dict[str, int]:
    """Message id -> receiver, for what the grid took (for a node that is gone it says None)."""
    sent = {}
    for receiver, message in messages.items():
        for message_id in grid.push_messages([message]):
            if message_id:
                sent[message_id] = receiver
    return sent


def _collect(grid: Grid, waiting: dict[str, int]) -> dict[int, Message]:
    """Receiver -> reply, for the replies that are there; takes them out of ``waiting``."""
    arrived = {}
    for reply in grid.pull_messages(list(waiting)) if waiting else ():
        receiver = waiting.pop(reply.metadata.reply_to_message_id, None)
        if receiver is not None:
            arrived[receiver] = reply
    return arrived


def roll_call(grid: Grid, n_clients: int, timeout: float = 120.0) -> dict[int, int]:
    """Asks every connected node which partition it holds, those that come late too.

    It ends when every id has one node and every node has answered: a quick liar is not believed
    before the honest node spoke. A node that stays silent thus costs ``timeout``, no more.

    Args:
        grid: Flower's grid.
        n_clients: How many clients the run needs, ids ``0..n_clients - 1``.
        timeout: Seconds to wait for all of them.

    Returns:
        Client id -> node id, ascending. Of several nodes that claim one id, none is believed.

    Raises:
        TooFewClients: If not every id has exactly one node in time.
    """
    deadline = monotonic() + timeout
    claims: dict[int, int] = {}
    waiting: dict[str, int] = {}
    while True:
        nodes = set(grid.get_node_ids())
        claims = {node: claim for node, claim in claims.items() if node in nodes}
        waiting = {message: node for message, node in waiting.items() if node in nodes}
        new = sorted(nodes - set(claims) - set(waiting.values()))
        waiting |= _send(grid, {n: Message(RecordDict(), n, MessageType.QUERY) for n in new})
        for node, reply in _collect(grid, waiting).items():
            claimed = _claimed_id(reply) if reply.has_content() else None
            if claimed is not None:
                claims[node] = claimed
        ids = list(claims.values())
        roster = {i: node for node, i in claims.items() if 0 <= i < n_clients and ids.count(i) == 1}
        late = monotonic() > deadline
        if len(roster) == n_clients and (late or not waiting):
            return dict(sorted(roster.items()))
        if late:
            missing = sorted(set(range(n_clients)) - set(roster))
            raise TooFewClients(
                f"federation needs clients 0..{n_clients - 1}, each on one node; within "
                f"{timeout:g} s found {len(roster)}, missing or claimed twice: {missing[:10]}"
            )
        sleep(0.1)


def _claimed_id(reply: Message) -> int | None:
    metrics = reply.content.get("metrics")
    value = metrics.get(CLIENT_ID) if isinstance(metrics, MetricRecord) else None
    return value if isinstance(value, int) else None


def sample_cohort(
    clients: Sequence[int], n_sampled: int | None, seed: int, server_round: int
) -> tuple[int, ...]:
    """Returns this round's clients, ascending: all, or ``n_sampled`` drawn without replacement.

    Raises:
        ValueError: If more clients are asked for than there are, or none.
    """
    if n_sampled is None or n_sampled == len(clients):
        return tuple(sorted(clients))
    if not 1 <= n_sampled <= len(clients):
        raise ValueError(f"cohort needs n_sampled in 1..{len(clients)} clients, got {n_sampled}")
    rng = numpy_stream(seed, "cohort", server_round)
    return tuple(sorted(rng.choice(sorted(clients), n_sampled, replace=False).tolist()))
