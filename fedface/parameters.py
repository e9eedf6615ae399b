"""A model's trainable parameters as one vector, with a layout that says where each one lies.

Buffers (batch statistics, counters) never enter the vector: they are no weights, and distances,
norms and coordinate-wise rules over them mean nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where one named parameter lies in the vector: ``vector[start:stop].reshape(shape)``."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The index behind the parameter's last value."""
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order, names and shapes of a model's trainable parameters in a ``(dim,)`` vector."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Returns the layout of ``model``'s parameters that require a gradient."""
        return cls.from_shapes(
            {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        )

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Layout":
        """Returns the layout of parameters with these shapes, in this order."""
        slots, start = [], 0
        for name, shape in shapes.items():
            slots.append(Slot(name, tuple(shape), start))
            start = slots[-1].stop
        return cls(tuple(slots))

    @property
    def dim(self) -> int:
        """The length of the vector."""
        return self.slots[-1].stop if self.slots else 0

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns ``parameters`` (name -> tensor) as one ``(dim,)`` float32 vector.

        Raises:
            KeyError: If a parameter of the layout is missing.
            ValueError: If a shape differs from the layout's.
        """
        pieces = []
        for slot in self.slots:
            tensor = parameters[slot.name]
            if tuple(tensor.shape) != slot.shape:
                raise ValueError(
                    f"parameter {slot.name} needs shape {slot.shape}, got {tuple(tensor.shape)}"
                )
            pieces.append(tensor.detach().reshape(-1).to("cpu", torch.float32))
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def joined(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns what :meth:`flatten` returns, without a copy where it can be had without one.

        ``parameters`` that :meth:`unflatten` made of a float32 vector, or that lie in memory as if
        it had, come back as that vector: a view of theirs.
        """
        first = parameters[self.slots[0].name] if self.slots else torch.zeros(0)
        origin = first.storage_offset()
        if first.dtype == torch.float32 and all(
            parameters[s.name].shape == s.shape
            and parameters[s.name].is_contiguous()
            and parameters[s.name].storage_offset() == origin + s.start
            and _in_one_memory(first, parameters[s.name])
            for s in self.slots
        ):
            return first.detach().as_strided((self.dim,), (1,), origin)
        return self.flatten(parameters)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Returns views of ``vector`` by parameter name.

        Raises:
            ValueError: If ``vector`` is not ``(dim,)``.
        """
        if vector.shape != (self.dim,):
            raise ValueError(f"vector needs shape ({self.dim},), got {tuple(vector.shape)}")
        return {s.name: vector[s.start : s.stop].reshape(s.shape) for s in self.slots}


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Returns ``torch.stack(rows)``: a view where they lie one behind the other in one memory.

    Args:
        rows: One or more vectors of one length.
    """
    first = rows[0]
    if all(
        row.ndim == 1
        and row.is_contiguous()
        and len(row) == len(first)
        and row.storage_offset() == first.storage_offset() + number * len(first)
        and _in_one_memory(first, row)
        for number, row in enumerate(rows)
    ):
        return first.as_strided((len(rows), len(first)), (len(first), 1))
    return torch.stack(list(rows))


def _in_one_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are views of one storage, as values of one type."""
    return (
        first.dtype == second.dtype
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of the parameters that are trained and travel, by name, on the CPU."""
    return {
        name: p.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of the persistent buffers (batch statistics, counters), on the CPU."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if name not in parameters
    }


def load(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copies ``parameters`` (and buffers, when given by name) into ``model`` in place.

    Raises:
        KeyError: If ``model`` has no tensor of a given name.
        ValueError: If a shape differs.
    """
    own = model.state_dict()
    for name, value in parameters.items():
        if own[name].shape != value.shape:
            raise ValueError(
                f"{name} needs shape {tuple(own[name].shape)}, got {tuple(value.shape)}"
            )
        own[name].copy_(value)
