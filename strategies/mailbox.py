"""Sends messages and takes back replies, each known by the message that it answers."""

from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid


def send(grid: Grid, messages: Mapping[int, Message]) -> dict[str, int]:
    """Returns message id -> receiver, for what the grid took (for a node that is gone: nothing)."""
    sent = {}
    for receiver, message in messages.items():
        for message_id in grid.push_messages([message]):
            if message_id:
                sent[message_id] = receiver
    return sent


def collect(grid: Grid, waiting: dict[str, int]) -> dict[int, Message]:
    """Returns receiver -> reply, for the replies that are there; takes them out of ``waiting``."""
    arrived = {}
    for reply in grid.pull_messages(list(waiting)) if waiting else ():
        receiver = waiting.pop(reply.metadata.reply_to_message_id, None)
        if receiver is not None:
            arrived[receiver] = reply
    return arrived
