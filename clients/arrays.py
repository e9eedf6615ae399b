"""Arrays of replies: bytes, or the values themselves where an engine takes them from this process.

Flower names an object's class when it sends it to a real server, which knows its own classes only:
so values are held where an engine says so (:func:`holding`), and nowhere else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedface.held import Held
from fedface.npy import to_npy

_holding = ContextVar("holding", default=False)


@contextmanager
def holding() -> Iterator[None]:
    """Lets :func:`to_record` hold values inside: for engines that take them out of the reply."""
    token = _holding.set(True)
    try:
        yield
    finally:
        _holding.reset(token)


class HeldArray(Held, Array):
    """An ``Array`` that is made into bytes only when somebody asks for them."""

    def __init__(self, values: Tensor, owner: object = None) -> None:
        """Holds ``values`` (on the CPU), and ``owner`` as long as itself."""
        # Not by setattr, which is Flower's and costs more than all the rest.
        vars(self).update(
            values=values,
            owner=owner,
            dtype=str(values.dtype).removeprefix("torch."),
            shape=tuple(values.shape),
            stype="numpy.ndarray",
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The values as ``.npy`` bytes, made when they are asked for first."""
        known = vars(self)
        if "bytes" not in known:
            known["bytes"] = to_npy(self.values.numpy())
        made: bytes = known["bytes"]
        return made

    def numpy(self) -> NDArray[Any]:
        """Returns a copy of the values, as reading them from bytes would."""
        return self.values.numpy().copy()

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        """Travels as a plain array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def held_record(tensors: Mapping[str, Tensor], owner: object = None) -> ArrayRecord:
    """Returns named tensors of the CPU as an ArrayRecord that holds them as they are.

    (``ArrayRecord(...)`` itself would make plain arrays of them.)
    """
    record = ArrayRecord()
    for name, values in tensors.items():
        record[name] = HeldArray(values, owner)
    return record


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Returns named tensors as an ArrayRecord; nobody may change them afterwards."""
    values = {name: value.detach().cpu() for name, value in tensors.items()}
    if _holding.get():
        return held_record(values)
    arrays = {name: value.numpy() for name, value in values.items()}
    return ArrayRecord(
        {
            name: Array(str(array.dtype), array.shape, "numpy.ndarray", to_npy(array))
            for name, array in arrays.items()
        }
    )


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Returns an ArrayRecord's tensors, without a copy where they are held: nobody writes there."""
    return {
        name: array.values if isinstance(array, Held) else torch.from_numpy(array.numpy())
        for name, array in record.items()
    }
