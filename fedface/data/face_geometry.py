"""Where things lie on a rendered face: the head as an ellipsoid, its pose, soft-edged shapes.

A pixel is traced back to the head: framing is undone, then the ellipsoid (a unit sphere once
scaled) is turned back by pitch and yaw, so features keep their place on the curved surface and
foreshorten towards its rim. Only operations that IEEE 754 rounds exactly are used (no exp, sin or
matrix product), so a pixel has the same bits in any batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedface.data.face_parameters import IDENTITY, NUISANCE, Nuisance, Parameter

EYE_LINE = -0.08
"""Height of the eyes in [-1, 1]: 0.46 of the image, as in the ArcFace template."""

Values = Mapping[str, Tensor]
"""Physical parameter values by name, each ``(n, 1, 1, 1)``."""

_HEAD_CENTRE = -0.06
_TINY = 1e-6


@dataclass(frozen=True)
class Head:
    """Where each pixel lies; every field broadcasts to ``(n, 1, size, size)``.

    Attributes:
        px: Place in the image, in [-1, 1], to the right.
        py: Place in the image, in [-1, 1], downwards.
        x: Place on the head as seen: framing undone.
        y: Place on the head as seen, downwards.
        u: Place on the face when seen from the front: pose undone.
        v: Place on the face when seen from the front, downwards.
        depth: Height of the surface towards the front of the head; negative at its back.
        normal: The surface's unit normal (right, down, towards the camera).
        pixel: The width of a pixel.
    """

    px: Tensor
    py: Tensor
    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    depth: Tensor
    normal: tuple[Tensor, Tensor, Tensor]
    pixel: float


def physical(identity: Tensor, nuisance: Tensor) -> tuple[Values, Values]:
    """Returns the physical values of ``(n, len(IDENTITY))`` and ``(n, len(NUISANCE))`` numbers.

    Raises:
        ValueError: If a shape differs or a number lies outside [-1, 1].
    """
    n = len(identity)
    families: tuple[tuple[str, Tensor, Sequence[Parameter | Nuisance]], ...] = (
        ("identity", identity, IDENTITY),
        ("nuisance", nuisance, NUISANCE),
    )
    values = []
    for name, numbers, table in families:
        if numbers.shape != (n, len(table)):
            raise ValueError(f"{name} needs shape {(n, len(table))}, got {tuple(numbers.shape)}")
        wrong = numbers.detach()[~(numbers.detach().abs() <= 1)]
        if len(wrong):
            raise ValueError(f"{name} needs numbers in [-1, 1], got {wrong[0].item()}")
        columns = numbers.to(torch.float32).reshape(n, len(table), 1, 1, 1).unbind(1)
        values.append(
            {row.name: c * row.spread + row.centre for row, c in zip(table, columns, strict=True)}
        )
    return values[0], values[1]


def trace(p: Values, q: Values, size: int) -> Head:
    """Returns where each pixel of a ``size`` x ``size`` image of head ``p``, photo ``q`` lies."""
    axis = (torch.arange(size, device=q["yaw"].device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    px, py = axis.reshape(1, 1, 1, size), axis.reshape(1, 1, size, 1)
    dx, dy = px - q["shift_x"], py - q["shift_y"] - EYE_LINE
    sin, cos = _sin(q["roll"]) / q["scale"], _cos(q["roll"]) / q["scale"]
    zero = torch.zeros_like(q["yaw"])
    mid_x, mid_y = turn(zero, zero + EYE_LINE, p, q)
    x, y = dx * cos + dy * sin + mid_x, dy * cos - dx * sin + mid_y
    a, b = p["head_width"], p["head_height"]
    e, f = x / a, (y - _HEAD_CENTRE) / b
    g = ((1 - e * e - f * f).clamp(min=0) + _TINY).sqrt()
    length = (e * e + f * f + g * g).sqrt()
    normal = (e / length, f / length, g / length)
    sin, cos = _sin(q["pitch"]), _cos(q["pitch"])
    f, g = f * cos - g * sin, f * sin + g * cos
    sin, cos = _sin(q["yaw"]), _cos(q["yaw"])
    e, g = e * cos - g * sin, e * sin + g * cos
    return Head(px, py, x, y, a * e, b * f + _HEAD_CENTRE, g, normal, 2 / size)


def turn(u: Tensor, v: Tensor, p: Values, q: Values) -> tuple[Tensor, Tensor]:
    """Returns where the turned head shows its own frontal point (u, v): the inverse of trace."""
    a, b = p["head_width"], p["head_height"]
    e, f = u / a, (v - _HEAD_CENTRE) / b
    g = ((1 - e * e - f * f).clamp(min=0) + _TINY).sqrt()
    sin, cos = _sin(q["yaw"]), _cos(q["yaw"])
    e, g = e * cos + g * sin, g * cos - e * sin
    f = f * _cos(q["pitch"]) + g * _sin(q["pitch"])
    return a * e, b * f + _HEAD_CENTRE


def landmarks(identity: Tensor, nuisance: Tensor) -> Tensor:
    """Returns ``(n, 4, 2)``: (x, y) of left eye, right eye, left and right mouth corner.

    Left is the viewer's left. Coordinates are fractions of the width and the height. Without
    pose or framing the eyes lie at y = 0.46 and, on average, at x = 0.34 and 0.66.

    Raises:
        ValueError: If a shape differs or a number lies outside [-1, 1].
    """
    p, q = physical(identity, nuisance)
    eye = p["eye_spacing"]
    eye_y = torch.full_like(eye, EYE_LINE)
    width = mouth_half_width(p, q)
    corner_y = p["mouth_height"] - mouth_lift(p, q)
    u = torch.cat([-eye, eye, -width, width], 3)
    v = torch.cat([eye_y, eye_y, corner_y, corner_y], 3)
    x, y = turn(u, v, p, q)
    mid_x, mid_y = turn(torch.zeros_like(eye), eye_y, p, q)
    x, y = (x - mid_x) * q["scale"], (y - mid_y) * q["scale"]
    sin, cos = _sin(q["roll"]), _cos(q["roll"])
    px = x * cos - y * sin + q["shift_x"]
    py = x * sin + y * cos + q["shift_y"] + EYE_LINE
    return (torch.stack([px, py], -1)[:, 0, 0] + 1) / 2


def mouth_half_width(p: Values, q: Values) -> Tensor:
    """Returns half the width of the mouth: a smile widens it."""
    return p["mouth_width"] * (1 + 1.5 * q["smile"])


def mouth_lift(p: Values, q: Values) -> Tensor:
    """Returns how far the corners of the mouth stand above its middle."""
    return p["mouth_curve"] + q["smile"]


def inside(distance: Tensor, softness: float) -> Tensor:
    """Returns coverage in [0, 1]: 1 where ``distance`` < 0, over an edge ``softness`` wide."""
    t = (0.5 - distance / softness).clamp(0, 1)
    return t * t * (3 - 2 * t)


def ellipse(x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Returns the distance to an ellipse at the origin, negative inside; exact to first order."""
    e, f = x / radius_x, y / radius_y
    level = (e * e + f * f + _TINY).sqrt()
    slope_x, slope_y = e / radius_x, f / radius_y
    slope = (slope_x * slope_x + slope_y * slope_y + _TINY).sqrt()
    return level * (level - 1) / slope


def wave(turns: Tensor) -> Tensor:
    """Returns a smooth wave in [-1, 1] of period 1: parabolas in place of the sine."""
    phase = turns - torch.round(turns).detach()
    return 8 * phase * (1 - 2 * phase.abs())


def _sin(angle: Tensor) -> Tensor:
    """Taylor's sine, off by less than 3e-6 for angles up to 1."""
    s = angle * angle
    return angle * (1 - s / 6 * (1 - s / 20 * (1 - s / 42)))


def _cos(angle: Tensor) -> Tensor:
    """Taylor's cosine, off by less than 3e-5 for angles up to 1."""
    s = angle * angle
    return 1 - s / 2 * (1 - s / 12 * (1 - s / 30))
