"""Which clients take part in a round: sampled by us, over partition ids.

Flower samples over node ids, which are random in every run and drawn with the global ``random``:
two runs of one config would train different sites. Here a client is its partition id.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic, sleep

from flwr.app import Message
from flwr.serverapp import Grid

from fedface.random import numpy_stream
from strategies.mailbox import collect, send
from strategies.roster import CLIENT_ID, Roster, TooFewClients

__all__ = ["CLIENT_ID", "TooFewClients", "exchange", "roll_call", "sample_cohort"]


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
    waiting = send(grid, messages)
    replies: dict[int, Message] = {}
    deadline = monotonic() + timeout
    while waiting and monotonic() < deadline:
        arrived = collect(grid, waiting)
        replies |= arrived
        if on_reply is not None:
            for client, reply in arrived.items():
                on_reply(client, reply)
        if not arrived:
            sleep(poll_seconds)
    return replies


def roll_call(grid: Grid, n_clients: int, timeout: float = 120.0) -> dict[int, int]:
    """Asks every connected node which partition it holds: :meth:`strategies.roster.Roster.call`.

    Args:
        grid: Flower's grid.
        n_clients: How many clients the run needs, ids ``0..n_clients - 1``.
        timeout: Seconds to wait for all of them.

    Returns:
        Client id -> node id, ascending. Of several nodes that claim one id, none is believed.

    Raises:
        TooFewClients: If not every id has exactly one node in time.
    """
    roster = Roster(n_clients)
    roster.call(grid, n_clients, timeout)
    return roster.nodes


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
