"""Translates between Flower records and the tensors of fedface."""

import re
from collections.abc import Mapping, Sequence
from math import prod

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
from fedface.parameters import Layout, stacked
from strategies.held import HeldArray

ARRAYS, BUFFERS, METRICS, CONFIG = "arrays", "buffers", "metrics", "config"
_NPY_HEADER_BYTES = 4096
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,15}(?:, \d{1,15}){0,31},?)\), \} *\n"
)


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Returns named tensors as an ArrayRecord (``.npy`` bytes, no pickle)."""
    return ArrayRecord(
        {name: Array(value.detach().cpu().numpy()) for name, value in tensors.items()}
    )


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Returns a trusted ArrayRecord as named tensors."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def _to_arrays(field: str, record: object, expected_bytes: Mapping[str, int]) -> dict[str, Values]:
    """Decodes an untrusted ArrayRecord; refuses what is larger than its name allows."""
    if not isinstance(record, ArrayRecord):
        raise InvalidReply(f"reply needs an ArrayRecord {field!r}, got {type(record).__name__}")
    decoded: dict[str, Values] = {}
    for name, array in record.items():
        if isinstance(array, HeldArray):
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
) -> ClientUpdate:
    """Returns a reply's content as a screened ClientUpdate.

    Raises:
        InvalidReply: If the client failed or its reply is malformed.
    """
    if reply.has_error():
        raise InvalidReply(f"client failed: {shortened(str(reply.error.reason), 300)}")
    if not reply.has_content():
        raise InvalidReply("reply needs content, got none")
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
