"""Paints the head of a rendered face: hair, ears, skin, features and the light on them.

Every layer is a coverage ``(n, 1, h, w)`` and a colour ``(n, 3, 1, 1)``, painted back to front.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedface.data.face_geometry import (
    EYE_LINE,
    Head,
    Values,
    ellipse,
    inside,
    mouth_half_width,
    mouth_lift,
    wave,
)


def paint(canvas: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    """Returns ``canvas`` with ``colour`` laid over it where ``coverage`` says."""
    return canvas + (colour - canvas) * coverage


def draw_head(head: Head, p: Values, q: Values) -> tuple[Tensor, Tensor]:
    """Returns the lit head ``(n, 3, h, w)`` and its coverage ``(n, 1, h, w)``."""
    soft = 1.3 * head.pixel
    skin, hair = _skin_colour(p), _hair_colour(p)
    outline = inside(_outline(head, p, q), soft)
    behind, back_cover = _behind(head, p, q, skin, hair)
    face = _features(head, p, q, _skin(head, p, skin), skin, hair)
    face = paint(face, hair * _strands(head, p), _hair_cover(head, p))
    face = paint(face, skin * 0.9, _side_ear(head, p))
    canvas = paint(behind, face * _light(head, p, q), outline)
    return canvas, torch.maximum(back_cover, outline)


def _skin_colour(p: Values) -> Tensor:
    m, red = p["melanin"], p["skin_redness"]
    return torch.cat([0.95 - 0.58 * m + red, 0.78 - 0.55 * m, 0.69 - 0.54 * m - red], 1)


def _hair_colour(p: Values) -> Tensor:
    light, red = p["hair_lightness"], p["hair_redness"]
    return torch.cat(
        [0.08 + 0.80 * light + red, 0.06 + 0.66 * light, 0.05 + 0.42 * light - 0.3 * red], 1
    ).clamp(0.01, 1)


def _outline(head: Head, p: Values, q: Values) -> Tensor:
    """Distance to the rim of the head: an ellipse, squarer and tapered towards the chin."""
    a, b = 0.97 * p["head_width"], 0.97 * p["head_height"]
    f = (head.y + 0.06) / b
    low = f.clamp(min=0)
    width = 1 - p["jaw_taper"] * low * low + 4 * p["cheek"] * low * (1 - low).clamp(min=0)
    e = (head.x - 0.25 * q["yaw"] * low * low) / (a * width.clamp(min=0.3))
    e2, f2 = e * e, f * f
    round_rim = (e2 + f2 + 1e-6).sqrt()
    square_rim = (e2 * e2 + f2 * f2 + 1e-6).sqrt().sqrt()
    share = p["jaw_square"] * (2 * low).clamp(max=1)
    return (round_rim + (square_rim - round_rim) * share - 1) * a


def _behind(head: Head, p: Values, q: Values, skin: Tensor, hair: Tensor) -> tuple[Tensor, Tensor]:
    """Clothes, neck, the hair behind the head and the ears that stand out, with their coverage."""
    soft = 1.3 * head.pixel
    x, y = head.x, head.y
    across = (x + 0.1 * q["yaw"]).abs()
    clothes = inside(1.02 + 0.35 * x * x - 0.25 * (x.abs() * 2).clamp(max=1) - y, soft)
    neck = inside(torch.maximum(across - 0.55 * p["head_width"], 0.5 - y), soft)
    a, b = p["head_width"] + p["hair_volume"], p["head_height"] + p["hair_volume"]
    ends = p["hair_length"] + 0.04 * wave(3 * across) - y
    mane = inside(torch.maximum(ellipse(x + 0.1 * q["yaw"], y.clamp(max=0.0), a, b), -ends), soft)
    ear = ellipse(
        x.abs() - p["head_width"] * 0.97,
        head.v - EYE_LINE - 0.12,
        0.5 * p["ear_size"],
        p["ear_size"],
    )
    ears = inside(ear, soft)
    shade = _back_light(head, q)
    cloth = torch.cat([q["clothes"], 0.9 * q["clothes"], 0.5 - 0.3 * q["clothes"]], 1)
    canvas = hair * 0.8 * _strands(head, p) * shade
    canvas = paint(canvas, skin * 0.72 * shade, neck)
    canvas = paint(canvas, cloth * shade, clothes)
    canvas = paint(canvas, skin * 0.85 * shade, ears)
    return canvas, torch.maximum(torch.maximum(mane, ears), torch.maximum(neck, clothes))


def _strands(head: Head, p: Values) -> Tensor:
    """Light and dark streaks in the hair."""
    return 1 + 0.16 * wave(2.6 * head.u + 0.8 * head.v + 8 * p["hair_wave"] * head.v)


def _hair_cover(head: Head, p: Values) -> Tensor:
    """The hair on the head: above the hairline, down the temples, and at the back."""
    e = head.u / p["head_width"]
    e2 = e * e
    line = p["hairline"] + p["hair_parting"] * e + p["hair_wave"] * wave(2.2 * e + 0.3)
    line = line + 0.42 * e2 + 0.9 * e2 * e2 * e2 * (0.3 + p["hair_length"]).clamp(0, 1)
    front = inside(0.75 * (head.v - line), 1.6 * head.pixel)
    back = inside(0.7 * head.depth + 0.05, 3 * head.pixel)
    return torch.maximum(front, back * inside(head.v - p["hair_length"] - 0.15, 3 * head.pixel))


def _side_ear(head: Head, p: Values) -> Tensor:
    """The ear on the side of the head that is turned to the camera."""
    depth = head.depth * p["head_width"]
    shape = ellipse(depth + 0.02, head.v - EYE_LINE - 0.12, 0.55 * p["ear_size"], p["ear_size"])
    short_hair = inside(p["hair_length"] - 0.25, 0.3)
    return inside(shape, 1.3 * head.pixel) * short_hair


def _skin(head: Head, p: Values, skin: Tensor) -> Tensor:
    """Skin with the person's own low-frequency texture, freckles, wrinkles and a mole."""
    u, v = head.u, head.v
    tone = 1 + p["texture_1"] * wave(0.9 * u + 0.7 * v + 0.1)
    tone = tone + p["texture_2"] * wave(1.3 * v - 0.8 * u + 0.4)
    tone = tone + p["texture_3"] * wave(1.9 * u + 0.7 * v + 0.8)
    tone = tone + p["texture_4"] * wave(1.6 * u.abs() - 1.4 * v + 0.25)
    spots = (wave(6.1 * u + 1.3 * v) * wave(5.3 * v - 1.1 * u) - 0.3).clamp(min=0)
    cheeks = inside(ellipse(u.abs() - 0.3, v - 0.18, 0.28, 0.22), 0.25)
    tone = tone - 0.9 * p["freckles"].clamp(min=0) * spots * cheeks
    tone = tone - p["wrinkles"].clamp(min=0) * _folds(head, p)
    mole = inside(
        ellipse(u - p["mole_x"], v - p["mole_y"], 0.03, 0.03) - p["mole_size"], 1.3 * head.pixel
    )
    seen = (p["mole_size"] * 50).clamp(0, 1)
    return skin * tone * (1 - 0.65 * mole * seen)


def _folds(head: Head, p: Values) -> Tensor:
    """Lines on the forehead and from the nose to the corners of the mouth, in [0, 1]."""
    lines = wave(5 * head.v + 0.2 * head.u * head.u).clamp(min=0)
    forehead = lines * inside(ellipse(head.u, head.v + 0.5, 0.4, 0.16), 0.15)
    along = (head.v - p["nose_length"]) * 0.6
    fold = (head.u.abs() - 0.75 * p["mouth_width"] - 0.04 - along).abs() - 0.015
    near_mouth = inside((head.v - 0.45).abs() - 0.16, 0.12)
    return 0.6 * forehead + inside(fold, 2 * head.pixel) * near_mouth


def _features(
    head: Head, p: Values, q: Values, canvas: Tensor, skin: Tensor, hair: Tensor
) -> Tensor:
    """Eyes, brows, nose, facial hair and mouth on the skin ``canvas``."""
    canvas = _eyes(head, p, q, canvas, skin)
    canvas = _brows(head, p, q, canvas, hair)
    canvas = _beard(head, p, q, canvas, hair)
    canvas = _nose(head, p, q, canvas, skin)
    return _mouth(head, p, q, canvas, skin)


def _eyes(head: Head, p: Values, q: Values, canvas: Tensor, skin: Tensor) -> Tensor:
    soft = 1.2 * head.pixel
    side = 1 - 2 * (head.u < 0).to(head.u.dtype)
    x = head.u.abs() - p["eye_spacing"]
    y = head.v - EYE_LINE + p["eye_tilt"] * x
    width, height = p["eye_width"], p["eye_height"] * (1 - q["eye_closure"])
    socket = inside(ellipse(x + 0.02, y + 0.01, 1.7 * width, 0.15), 0.16)
    canvas = canvas * (1 - p["eye_socket"] * socket)
    opening = inside(ellipse(x, y, width, height), soft)
    lid = inside(ellipse(x, y + 0.014, width * 1.12, height + 0.022), soft)
    canvas = paint(canvas, skin * 0.28, lid * 0.9)
    canvas = paint(canvas, _rgb(canvas, (0.93, 0.91, 0.89)), opening)
    gaze = x - q["gaze"] * side
    radius = 0.062
    blue, green = p["iris_blue"], p["iris_green"]
    iris = torch.cat([0.32 - 0.2 * blue, 0.18 + 0.28 * blue + green, 0.10 + 0.60 * blue], 1)
    canvas = paint(canvas, iris, opening * inside(ellipse(gaze, y, radius, radius), soft))
    pupil = inside(ellipse(gaze, y, 0.03, 0.03), soft)
    return paint(canvas, _rgb(canvas, (0.02, 0.02, 0.02)), opening * pupil)


def _brows(head: Head, p: Values, q: Values, canvas: Tensor, hair: Tensor) -> Tensor:
    x = (head.u.abs() - p["eye_spacing"] - 0.01) / p["brow_length"]
    middle = p["brow_height"] - q["brow_raise"] - p["brow_angle"] * x * 0.25 + 0.05 * x * x
    shape = ellipse(x * p["brow_length"], head.v - middle, p["brow_length"], p["brow_thickness"])
    return paint(canvas, hair * 0.55, 0.9 * inside(shape, 1.3 * head.pixel))


def _nose(head: Head, p: Values, q: Values, canvas: Tensor, skin: Tensor) -> Tensor:
    """Nostrils and the shadow under the tip; the ridge itself is light (see _light)."""
    soft = 1.4 * head.pixel
    x, y = head.u - 0.16 * q["yaw"], head.v - p["nose_length"] - 0.12 * q["pitch"]
    width = p["nose_width"]
    under = inside(ellipse(x, y - 0.035, width, 0.045), 0.06)
    canvas = paint(canvas, skin * 0.62, 0.75 * under)
    wings = inside((ellipse(x.abs() - 0.9 * width, y, 0.035, 0.06)).abs() - 0.012, soft)
    canvas = paint(canvas, skin * 0.6, 0.6 * wings)
    nostrils = inside(ellipse(x.abs() - 0.48 * width, y - 0.03, 0.3 * width, 0.026), soft)
    return paint(canvas, skin * 0.22, nostrils)


def _beard(head: Head, p: Values, q: Values, canvas: Tensor, hair: Tensor) -> Tensor:
    """Beard along the jaw and moustache under the nose; opacities below zero are none."""
    u, v = head.u, head.v
    e = u / p["head_width"]
    top = p["mouth_height"] + 0.02 - 0.75 * e * e - q["mouth_open"] * 0.3
    jaw = inside(0.8 * (top - v), 3 * head.pixel)
    middle = (p["nose_length"] + p["mouth_height"]) * 0.5 + 0.03
    lip = ellipse(u, v - middle - 0.6 * u * u, 1.15 * p["mouth_width"], 0.065)
    canvas = paint(canvas, hair * 0.75, jaw * p["beard"].clamp(0, 0.85))
    moustache = inside(lip, 2 * head.pixel) * p["moustache"].clamp(0, 0.85)
    return paint(canvas, hair * 0.75, moustache)


def _mouth(head: Head, p: Values, q: Values, canvas: Tensor, skin: Tensor) -> Tensor:
    soft = 1.2 * head.pixel
    width = mouth_half_width(p, q)
    e = head.u / width
    y = head.v - p["mouth_height"] + mouth_lift(p, q) * e * e
    gap = 0.008 + q["mouth_open"]
    upper = ellipse(head.u, y.clamp(max=0), width, p["upper_lip"] + 0.25 * q["mouth_open"])
    lower = ellipse(head.u, y.clamp(min=0), width, p["lower_lip"] + gap)
    lips = inside(torch.maximum(upper, lower), soft)
    red = p["lip_redness"]
    lip_colour = torch.cat([skin[:, :1] * 0.86 + 0.1 * red, skin[:, 1:] * (0.72 - red)], 1)
    canvas = paint(canvas, lip_colour, lips)
    opening = inside(ellipse(head.u, y - 0.5 * gap, 0.9 * width, 0.012 + 0.6 * gap), soft)
    canvas = paint(canvas, _rgb(canvas, (0.16, 0.05, 0.05)), opening)
    teeth = inside(ellipse(head.u, y - 0.1 * gap, 0.7 * width, 0.35 * gap), soft)
    return paint(
        canvas, _rgb(canvas, (0.92, 0.90, 0.85)), teeth * (8 * q["mouth_open"]).clamp(0, 1)
    )


def _light(head: Head, p: Values, q: Values) -> Tensor:
    """What the light leaves of the colour: Lambert's law on the ellipsoid with a nose on it."""
    x = (head.u - 0.10 * q["yaw"]) / (p["nose_width"] * 1.1)
    reach = (head.v + 0.2) / (p["nose_length"] + 0.2)
    ridge = inside((reach - 0.55).abs() - 0.5, 0.3) * (1 - x * x).clamp(min=0)
    bump = 2.4 * p["nose_bridge"] * x * ridge * (0.5 + reach)
    nx, ny, nz = head.normal
    return _lambert(nx + bump, ny + 0.25 * ridge * reach, nz, q)


def _back_light(head: Head, q: Values) -> Tensor:
    nx, ny, nz = head.normal
    return _lambert(nx, ny, nz + 0.3, q)


def _lambert(nx: Tensor, ny: Tensor, nz: Tensor, q: Values) -> Tensor:
    lx, ly, strength = q["light_x"], q["light_y"], q["light_strength"]
    light = (lx * lx + ly * ly + 1).sqrt()
    surface = (nx * nx + ny * ny + nz * nz).sqrt()
    cosine = (nx * lx + ny * ly + nz) / (light * surface)
    lit = (1 - strength) + strength * 1.25 * cosine.clamp(min=0)
    return lit * q["exposure"]


def _rgb(canvas: Tensor, colour: Sequence[float]) -> Tensor:
    return torch.tensor(colour, dtype=canvas.dtype, device=canvas.device).reshape(1, 3, 1, 1)
