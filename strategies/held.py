"""Arrays whose values this process holds already, so that nobody has to read them from bytes.

Engines that share memory with their workers hand updates over in this form. What comes over a
network is a plain ``Array``, always: a sender cannot choose this type.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedface.npy import to_npy


class HeldArray(Array):
    """An ``Array`` that is made into bytes only when somebody asks for them."""

    values: Tensor
    owner: object

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
        """The values as ``.npy`` bytes."""
        return to_npy(self.values.numpy())

    def numpy(self) -> NDArray[Any]:
        """Returns a copy of the values, as reading them from bytes would."""
        return self.values.numpy().copy()

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        """Travels as a plain array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def held_record(tensors: Mapping[str, Tensor], owner: object = None) -> ArrayRecord:
    """Returns named tensors as an ArrayRecord that holds them as they are.

    (``ArrayRecord(...)`` itself would make plain arrays of them.)
    """
    record = ArrayRecord()
    for name, values in tensors.items():
        record[name] = HeldArray(values, owner)
    return record
