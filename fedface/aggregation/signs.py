"""How the clients' signs add up at each coordinate."""

import numpy as np
import torch
from torch import Tensor

from fedface.aggregation.blocks import Scratch, by_columns


def sign_sums(updates: Tensor, block: int | None = None) -> Tensor:
    """Returns how many more clients move each coordinate up than down.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        block: Columns per pass.

    Returns:
        ``(dim,)`` float32, from -n_clients to n_clients; sign(0) is 0.
    """
    values, scratch = updates.numpy(), Scratch()
    sums = np.zeros(values.shape[1], np.float32)

    def add(columns: slice) -> None:
        total = sums[columns]
        sign = scratch.array("sign", total.shape, np.float32)
        for row in values[:, columns]:
            total += np.sign(row, out=sign)

    by_columns(add, values.shape, block)
    return torch.from_numpy(sums)
