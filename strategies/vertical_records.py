"""Translates between Flower records and what the parties of a vertical federation exchange."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.screening import InvalidReply, shortened
from fedface.held import Held
from fedface.vertical.channel import Channel
from strategies.records import values_of

EMBED, BACKWARD, SAVE = "train.embed", "train.backward", "train.save"
RELEASE, ALIGN = "evaluate.embed", "query.align"

_HEADER_BYTES = 4096


def request(
    node: int,
    kind: str,
    server_round: int,
    rows: Tensor | None = None,
    gradient: tuple[int, Tensor] | None = None,
) -> Message:
    """Returns a message to a passive party.

    Args:
        node: Where it lives.
        kind: One of the message types above.
        server_round: The round.
        rows: ``(n,)`` int64, which of its records are asked for.
        gradient: The number of the release that it answers, and ``(n, dim)`` float32.
    """
    config: dict[str, int] = {"server-round": server_round}
    content: dict[str, ArrayRecord | ConfigRecord] = {}
    if gradient is not None:
        config["answers"] = gradient[0]
        content["gradients"] = ArrayRecord({"z": Array(gradient[1].cpu().numpy())})
    if rows is not None:
        content["request"] = ArrayRecord({"rows": Array(rows.numpy())})
    content["config"] = ConfigRecord(dict(config))
    return Message(RecordDict(dict(content)), node, kind, group_id=str(server_round))


def to_embeddings(reply: Message, asked: Tensor, channel: Channel) -> tuple[Tensor, int]:
    """Returns a party's ``(n, dim)`` float32 embeddings and the number of their release.

    Args:
        reply: What came.
        asked: ``(n,)`` int64, the rows that were asked for.
        channel: What the party may send.

    Raises:
        InvalidReply: Names the party, if it failed or answers for other rows, or its embeddings
            have another shape or type, are not finite or longer than clip and noise allow.
    """
    content = content_of(reply, channel.party, {"embeddings", "records", "metrics"})
    rows = named_values(content, "records", ("rows",), channel.party, asked.numel() * 8)["rows"]
    _check_rows(rows, asked, channel.party)
    limit = asked.numel() * channel.dim * 4
    values = named_values(content, "embeddings", ("z",), channel.party, limit)["z"]
    if values.dtype != np.float32:
        raise InvalidReply(f"party {channel.party} needs to send float32, got {values.dtype}")
    z = torch.from_numpy(np.array(values))
    try:
        channel.check(z, len(asked))
    except ValueError as error:
        raise InvalidReply(str(error)) from None
    return z, _number(content, "release", channel.party)


def to_tokens(reply: Message, party: str, most: int) -> tuple[str, ...]:
    """Returns the tokens of a party's records; that they are tokens is for alignment to check.

    Raises:
        InvalidReply: Names the party, if there are none or more than ``most``.
    """
    record = content_of(reply, party, {"alignment"}).get("alignment")
    tokens = record.get("tokens") if isinstance(record, ConfigRecord) else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InvalidReply(f"party {party} needs to send a list of tokens, got none")
    if not 1 <= len(tokens) <= most:
        raise InvalidReply(f"party {party} needs to send 1..{most} tokens, got {len(tokens)}")
    return tuple(str(token) for token in tokens)


def to_spent(reply: Message, party: str) -> dict[str, float]:
    """Returns what a party says that it has spent: finite numbers by name.

    Raises:
        InvalidReply: Names the party, if it failed or says something else.
    """
    metrics = content_of(reply, party, {"metrics"}).get("metrics")
    if not isinstance(metrics, MetricRecord):
        raise InvalidReply(f"party {party} needs to send metrics, got {type(metrics).__name__}")
    known = ("release", "replace-one", "zero-out", "most-releases", "all-releases")
    spent: dict[str, float] = {}
    for name in known:
        value = metrics.get(name)
        if isinstance(value, int | float) and np.isfinite(value):
            spent[name.replace("-", "_")] = value
    return spent


def failure(reply: Message) -> str | None:
    """Returns why a client failed, in its engine's words, or None if it did not."""
    return str(reply.error.reason) if reply.has_error() else None


def content_of(reply: Message, party: str, allowed: set[str]) -> Mapping[str, object]:
    """Returns the records of an untrusted reply.

    Raises:
        InvalidReply: Names the party, if it failed or sent no or other records than ``allowed``.
    """
    if reply.has_error():
        raise InvalidReply(f"party {party} failed: {shortened(str(reply.error.reason), 300)}")
    if not reply.has_content():
        raise InvalidReply(f"party {party} needs to send content, got none")
    if unknown := sorted(set(reply.content) - allowed):
        raise InvalidReply(
            f"party {party} sent unknown records {shortened(', '.join(unknown[:3]))}"
        )
    return reply.content


def named_values(
    content: Mapping[str, object], record: str, names: Sequence[str], party: str, n_bytes: int
) -> dict[str, NDArray[np.generic]]:
    """Returns the arrays of one record of an untrusted reply.

    Args:
        content: All records.
        record: Which.
        names: The arrays that it needs to hold, no others.
        party: Who sent it.
        n_bytes: The most that one array may hold.

    Raises:
        InvalidReply: Names the party, if there are other arrays, or one is larger or unreadable.
    """
    found = content.get(record)
    if not isinstance(found, ArrayRecord) or set(found) != set(names):
        wanted = " and ".join(f"{record}[{name}]" for name in names)
        raise InvalidReply(f"party {party} needs to send {wanted} alone, got other arrays")
    return {name: _array(found[name], f"{record}[{name}]", party, n_bytes) for name in names}


def _array(array: Array, name: str, party: str, n_bytes: int) -> NDArray[np.generic]:
    """One array, refused when it is larger than it may be."""
    if isinstance(array, Held):
        return array.values.numpy()
    if len(array.data) > n_bytes + _HEADER_BYTES:
        raise InvalidReply(
            f"party {party} needs to send {name} of {n_bytes} bytes, got {len(array.data)}"
        )
    try:
        return values_of(name, array)
    except InvalidReply as error:
        raise InvalidReply(f"party {party}: {error}") from None


def _check_rows(rows: NDArray[np.generic], asked: Tensor, party: str) -> None:
    """Refuses an answer for other records than those asked for."""
    wanted = asked.numpy()
    if rows.dtype != np.int64 or rows.shape != wanted.shape:
        raise InvalidReply(
            f"party {party} needs to answer for {wanted.shape} int64 rows, "
            f"got {rows.shape} {rows.dtype}"
        )
    unknown: Sequence[int] = [int(r) for r in np.setdiff1d(rows, wanted)]
    if unknown:
        raise InvalidReply(
            f"party {party} answers for {len(unknown)} rows that nobody asked for, "
            f"the first is {unknown[0]}"
        )
    if not np.array_equal(rows, wanted):
        raise InvalidReply(f"party {party} needs to answer in the order asked, got another")


def _number(content: Mapping[str, object], name: str, party: str) -> int:
    metrics = content.get("metrics")
    value = metrics.get(name) if isinstance(metrics, MetricRecord) else None
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise InvalidReply(f"party {party} needs to number its release, got {value!r:.40}")
    return value
