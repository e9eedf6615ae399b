"""Renders faces from parameters: background, head, occluder and camera."""

import torch
from torch import Tensor

from fedface.data.face_drawing import draw_head, paint
from fedface.data.face_geometry import Head, Values, inside, physical, trace, wave

MIN_SIZE = 16
"""The smallest image side: below it the features fall between the pixels."""


def render(identity: Tensor, nuisance: Tensor, size: int) -> Tensor:
    """Returns ``(n, 3, size, size)`` float32 RGB faces in [0, 1], aligned at the eyes.

    Row i depends on row i of the inputs only, bit for bit on a CPU. Differentiable in every
    parameter but the noise seed.

    Args:
        identity: ``(n, len(IDENTITY))`` numbers in [-1, 1], see ``face_parameters``.
        nuisance: ``(n, len(NUISANCE))`` numbers in [-1, 1].
        size: Height and width in pixels, at least 16.

    Raises:
        ValueError: If a shape or a number is out of range, or ``size`` is below 16.
    """
    if size < MIN_SIZE:
        raise ValueError(f"a rendered face needs size >= {MIN_SIZE}, got size={size}")
    p, q = physical(identity, nuisance)
    head = trace(p, q, size)
    face, coverage = draw_head(head, p, q)
    canvas = paint(_background(head, q), face * _tint(q["warmth"]), coverage)
    canvas = _occlude(head, q, canvas)
    return _camera(canvas, q, size)


def _background(head: Head, q: Values) -> Tensor:
    x, y, pitch = head.px, head.py, q["background_pitch"]
    shade = q["background_slope_x"] * x + q["background_slope_y"] * y
    shade = shade + q["background_pattern"] * wave(pitch * x + 0.6 * y) * wave(pitch * y + 0.2)
    colour = torch.cat([q[f"background_{c}"] for c in ("red", "green", "blue")], 1)
    return (colour + shade).clamp(0, 1)


def _tint(warmth: Tensor) -> Tensor:
    return torch.cat([1 + warmth, torch.ones_like(warmth), 1 - warmth], 1)


def _occlude(head: Head, q: Values, canvas: Tensor) -> Tensor:
    """Lays a tilted patch over the face; a patch without width or height hides nothing."""
    x, y = head.px - q["occluder_x"], head.py - q["occluder_y"]
    x, y = x + 0.5 * q["occluder_tilt"] * y, y - 0.5 * q["occluder_tilt"] * x
    width, height = q["occluder_width"], q["occluder_height"]
    patch = inside(torch.maximum(x.abs() - width, y.abs() - height), 2 * head.pixel)
    present = (20 * torch.minimum(width, height)).clamp(0, 1)
    colour = torch.cat([q[f"occluder_{c}"] for c in ("red", "green", "blue")], 1)
    return paint(canvas, colour * (1 + 0.2 * wave(0.9 * x + 1.1 * y)), patch * present)


def _camera(canvas: Tensor, q: Values, size: int) -> Tensor:
    """Blur, contrast, brightness, colour cast and sensor noise, then the sensor's range."""
    for _ in range(2):
        canvas = paint(canvas, _smoothed(canvas, max(1, round(size / 32))), q["blur"])
    canvas = (canvas - 0.5) * q["contrast"] + 0.5 + q["brightness"]
    cast = torch.cat([q["cast_red"], torch.zeros_like(q["blur"]), q["cast_blue"]], 1)
    return (canvas + cast + q["noise"] * _grain(q["noise_seed"], size)).clamp(0, 1)


def _smoothed(image: Tensor, step: int) -> Tensor:
    """The separable kernel (1, 2, 1) / 4 with its taps ``step`` pixels apart, edges repeated."""
    n = image.shape[-1]
    index = torch.arange(n, device=image.device)
    before, after = (index - step).clamp(min=0), (index + step).clamp(max=n - 1)
    image = (image[..., before] + 2 * image + image[..., after]) / 4
    return (image[..., before, :] + 2 * image + image[..., after, :]) / 4


def _grain(seed: Tensor, size: int) -> Tensor:
    """Noise ``(n, 3, size, size)`` of mean 0 and deviation 1: a hash of the seed and the pixel."""
    number = ((seed.detach() + 1) * 2**23).to(torch.int64)
    pixel = torch.arange(3 * size * size, device=seed.device).reshape(1, 3, size, size)
    bits = ((pixel * 2654435761) ^ (number * 2246822519)) & 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    bits = bits ^ (bits >> 16)
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)
    return (total - 510).to(torch.float32) / 147.8
