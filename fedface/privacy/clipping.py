"""Rows of bounded length, and the noise that goes on them."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6)]
"""C, the Euclidean length that no shared embedding exceeds; the range keeps float32 exact."""

_ROUND_DOWN = 1 - 2**-22


def clip(h: Tensor, bound: float) -> Tensor:
    """Returns ``h`` with every row scaled to at most ``bound``: h min(1, bound / ||h||).

    The lengths are taken in float64, and rows that are shortened come out 2^-22 shorter than
    ``bound``, so that rounding to float32 never lifts a row above it. Rows within the bound come
    back bit for bit; clipping twice changes nothing. Differentiable, also at zero.

    Args:
        h: ``(batch, dim)`` floating point.
        bound: C, in the range of :data:`ClipNorm`.

    Returns:
        ``(batch, dim)``, float64 if ``h`` is and float32 otherwise.

    Raises:
        ValueError: If ``h`` has another shape, or a row that is not finite.
    """
    check_rows(h)
    wide = h.double()
    largest = wide.detach().abs().amax(1, keepdim=True).clamp(min=1.0)
    length = torch.linalg.vector_norm(wide / largest, dim=1, keepdim=True)  # in units of largest
    shortened = (wide / largest) * (bound * _ROUND_DOWN / length.clamp(min=1e-9))
    too_long = length * largest > bound
    return torch.where(too_long, shortened, wide).to(_at_least_float32(h))


def check_rows(h: Tensor) -> None:
    """Checks that ``h`` is ``(batch, dim >= 1)`` floating point and finite.

    Raises:
        ValueError: If not; says how many rows are not finite.
    """
    if h.ndim != 2 or h.shape[1] < 1 or not h.is_floating_point():
        raise ValueError(
            f"embeddings need shape (batch, dim >= 1) and a floating type, "
            f"got {tuple(h.shape)} {h.dtype}"
        )
    finite = torch.isfinite(h.detach()).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"embeddings need finite values, got {len(bad)} of {len(h)} rows that are not, "
            f"the first is row {bad[0]}"
        )


def standard_normal(h: Tensor, rng: torch.Generator) -> Tensor:
    """Returns independent N(0, 1) numbers of the shape and device of ``h``, drawn where rng lives.

    float64 if ``h`` is and float32 otherwise.
    """
    drawn = torch.randn(h.shape, generator=rng, device=rng.device, dtype=_at_least_float32(h))
    return drawn.to(h.device)


def _at_least_float32(h: Tensor) -> torch.dtype:
    return torch.float64 if h.dtype == torch.float64 else torch.float32
