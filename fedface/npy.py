"""Arrays as ``.npy`` bytes, made with one copy.

``numpy.save`` into memory copies twice more and lets the buffer grow under its hands: for a model's
update that is most of what sending it costs.
"""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0
from numpy.typing import NDArray


def to_npy(values: NDArray[Any]) -> bytes:
    """Returns what ``numpy.save(..., allow_pickle=False)`` writes (version 1.0, C order).

    Args:
        values: Of any shape and any type but objects.

    Raises:
        ValueError: If the type holds objects, which only pickle could write.
    """
    if values.dtype.hasobject:
        raise ValueError(f"npy needs numbers or text, got {values.dtype}")
    rows = np.asarray(values, order="C")
    header = BytesIO()
    write_array_header_1_0(header, header_data_from_array_1_0(rows))
    return b"".join((header.getvalue(), rows.reshape(-1).view(np.uint8).data))
