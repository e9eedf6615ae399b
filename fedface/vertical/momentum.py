"""The momentum of SGD as named tensors, so that a resumed party takes the steps it would have."""

from collections.abc import Mapping

import torch
from torch import Tensor

_KEY = "momentum_buffer"


def momentum(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns copies of the momentum buffers by the number of their parameter, ``"0"`` and so on.

    Parameters that have not been stepped yet have none.
    """
    found = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        buffer = optimizer.state.get(parameter, {}).get(_KEY)
        if buffer is not None:
            found[str(number)] = buffer.detach().cpu().clone()
    return found


def restore_momentum(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts buffers from :func:`momentum` back; parameters without one start without momentum.

    Raises:
        ValueError: If a buffer belongs to no parameter or has another shape.
    """
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for name, buffer in tensors.items():
        number = int(name)
        if number >= len(parameters) or parameters[number].shape != buffer.shape:
            raise ValueError(
                f"momentum {name} needs a parameter of shape {tuple(buffer.shape)}, "
                f"got {[tuple(p.shape) for p in parameters[number : number + 1]]}"
            )
        parameter = parameters[number]
        optimizer.state[parameter][_KEY] = buffer.to(parameter.device, copy=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
