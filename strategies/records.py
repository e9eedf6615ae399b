"""Translates between Flower records and the tensors of fedface."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from secrets import token_hex

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray
from torch import Tensor

from fedface.aggregation.cohort import Cohort
from fedface.aggregation.global_model import GlobalModel
from fedface.aggregation.screening import (
    ClientUpdate,
    InvalidReply,
    ReplyLimits,
    Values,
    screen,
    shortened,
)
from fedface.held import Held
from fedface.npy import to_npy
from fedface.parameters import Layout, stacked

ARRAYS, BUFFERS, METRICS, CONFIG = "arrays", "buffers", "metrics", "config"
_NPY_HEADER_BYTES = 4096
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,15}(?:, \d{1,15}){0,31},?)\), \} *\n"
)


@dataclass(frozen=True)
class Ticket:
    """Binds replies to the messages of one exchange, so that no older reply passes for one.

    It travels as the message's group id, which Flower copies into the reply and a site's gate
    compares. The number is drawn anew for every exchange: when a resumed run repeats a round, what
    comes in for the earlier attempt is refused too. It shows which *message* a reply belongs to; a
    site that sends last round's numbers in this round's reply cannot be told from one that computed
    them, and is the aggregator's matter.

    Attributes:
        server_round: The round of the messages.
        number: Drawn for this exchange alone, in hexadecimal digits; no result depends on it.
    """

    server_round: int
    number: str

    @classmethod
    def of_round(cls, server_round: int) -> "Ticket":
        """Returns a new ticket."""
        return cls(server_round, token_hex(8))

    @property
    def group_id(self) -> str:
        """The group id of the messages and of their replies."""
        return f"{self.server_round}.{self.number}"

    def fits(self, reply: Message) -> bool:
        """Returns whether ``reply`` answers a message with this ticket."""
        return bool(reply.metadata.group_id == self.group_id)

    def require(self, reply: Message) -> None:
        """Refuses a reply to any other message.

        Raises:
            InvalidReply: If its group id is not this ticket's.
        """
        if not self.fits(reply):
            found = str(reply.metadata.group_id)
            of_round = shortened(found.partition(".")[0], 20) or "none"
            raise InvalidReply(
                f"reply needs to answer this message of round {self.server_round}, got one to an "
                f"earlier message (round {of_round}): a replay"
            )


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Returns named tensors as an ArrayRecord (``.npy`` bytes, no pickle)."""
    values = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    return ArrayRecord(
        {
            name: Array(str(array.dtype), array.shape, "numpy.ndarray", to_npy(array))
            for name, array in values.items()
        }
    )


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Returns a trusted ArrayRecord as named tensors."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def _to_arrays(field: str, record: object, expected_bytes: Mapping[str, int]) -> dict[str, Values]:
    """Decodes an untrusted ArrayRecord; refuses what is larger than its name allows."""
    if not isinstance(record, ArrayRecord):
        raise InvalidReply(f"reply needs an ArrayRecord {field!r}, got {type(record).__name__}")
    decoded: dict[str, Values] = {}
    for name, array in record.items():
        if isinstance(array, Held):
            decoded[name] = array.values
            continue
        limit = expected_bytes.get(name)
        if limit is not None and len(array.data) > limit + _NPY_HEADER_BYTES:
            raise InvalidReply(f"{field}[{name}] needs {limit} bytes, got {len(array.data)}")
        decoded[name] = values_of(f"{field}[{name}]", array) if limit is not None else np.empty(0)
    return decoded


def values_of(field: str, array: Array) -> NDArray[np.generic]:
    """Returns the values in ``.npy`` bytes (version 1.0, what ``np.save`` writes), without a copy.

    Nobody needs to vouch for the bytes: ``np.load`` would also open zip archives, raise half a
    dozen kinds of errors on a header made for it and allocate whatever shape the header claims.

    Raises:
        InvalidReply: If they are anything else; the message begins with ``field``.
    """
    data = array.data
    start = 10 + int.from_bytes(data[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[10:start])
    if array.stype != "numpy.ndarray" or data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise InvalidReply(f"{field} is no readable array")
    shape = tuple(int(n) for n in re.findall(rb"\d+", header[3]))
    try:
        dtype = np.dtype(header[1].decode())
        if prod(shape) * dtype.itemsize != len(data) - start:
            raise ValueError(f"{shape} {dtype} does not fit {len(data) - start} bytes")
        values = np.frombuffer(data, dtype, offset=start) if prod(shape) else np.empty(0, dtype)
        return values.reshape(shape, order="F" if header[2] == b"True" else "C")
    except (ValueError, TypeError) as error:
        raise InvalidReply(f"{field} is no readable array: {shortened(str(error))}") from None


def to_update(
    client: int,
    reply: Message,
    layout: Layout,
    buffers: Mapping[str, Tensor],
    limits: ReplyLimits,
    ticket: Ticket | None = None,
) -> ClientUpdate:
    """Returns a reply's content as a screened ClientUpdate.

    Args:
        client: Whose reply it is.
        reply: The reply.
        layout: The names and shapes of an update.
        buffers: The global model's buffers.
        limits: What a client may claim.
        ticket: Which exchange the reply has to belong to; None for any.

    Raises:
        InvalidReply: If the client failed, or its reply is malformed or answers another message.
    """
    if reply.has_error():
        raise InvalidReply(f"client failed: {shortened(str(reply.error.reason), 300)}")
    if not reply.has_content():
        raise InvalidReply("reply needs content, got none")
    if ticket is not None:
        ticket.require(reply)
    content = reply.content
    metrics = content.get(METRICS)
    if not isinstance(metrics, MetricRecord):
        raise InvalidReply(f"reply needs a MetricRecord, got {type(metrics).__name__}")
    if unknown := set(content) - {ARRAYS, BUFFERS, METRICS}:
        raise InvalidReply(f"reply has unknown records {shortened(', '.join(sorted(unknown)[:3]))}")
    return screen(
        client,
        _to_arrays(
            ARRAYS, content.get(ARRAYS), {s.name: 4 * (s.stop - s.start) for s in layout.slots}
        ),
        _to_arrays(
            BUFFERS,
            content.get(BUFFERS, ArrayRecord()),
            {name: b.numel() * b.element_size() for name, b in buffers.items()},
        ),
        metrics,
        layout,
        buffers,
        limits,
    )


def to_cohort(
    updates: Sequence[ClientUpdate],
    layout: Layout,
    server_round: int,
    seed: int,
    model: GlobalModel | None = None,
) -> Cohort:
    """Stacks screened updates, in ascending order of client id; no copy where they lie stacked."""
    ordered = sorted(updates, key=lambda update: update.client)
    return Cohort(
        updates=stacked([update.delta for update in ordered]),
        layout=layout,
        n_examples=torch.tensor([update.n_examples for update in ordered]),
        n_steps=torch.tensor([update.n_steps for update in ordered]),
        client_ids=tuple(update.client for update in ordered),
        server_round=server_round,
        seed=seed,
        model=model,
    )
