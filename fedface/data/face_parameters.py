"""What makes a rendered face: who it is (identity) and how it was photographed (nuisance).

Every parameter is a number in [-1, 1]; 0 is the average face, or the plain passport photograph.
The tables give the physical value: ``centre + spread * number``. Lengths are in half image widths
(the image spans [-1, 1]), angles in radians, colours and opacities in [0, 1].
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedface.config import Config


class Parameter(NamedTuple):
    """One number of a face: its name and its physical value ``centre + spread * number``."""

    name: str
    centre: float
    spread: float


class Nuisance(NamedTuple):
    """One number of a photograph; ``group`` names the strength that scales its draws."""

    name: str
    centre: float
    spread: float
    group: str
    one_sided: bool = False


IDENTITY: tuple[Parameter, ...] = (
    Parameter("head_width", 0.72, 0.09),
    Parameter("head_height", 1.02, 0.09),
    Parameter("jaw_square", 0.35, 0.35),
    Parameter("jaw_taper", 0.20, 0.13),
    Parameter("cheek", 0.03, 0.07),
    Parameter("melanin", 0.42, 0.38),
    Parameter("skin_redness", 0.0, 0.05),
    Parameter("hair_lightness", 0.35, 0.35),
    Parameter("hair_redness", 0.06, 0.10),
    Parameter("hairline", -0.66, 0.20),
    Parameter("hair_length", 0.35, 0.75),
    Parameter("hair_volume", 0.11, 0.08),
    Parameter("hair_parting", 0.0, 0.28),
    Parameter("hair_wave", 0.0, 0.07),
    Parameter("eye_spacing", 0.32, 0.035),
    Parameter("eye_width", 0.135, 0.025),
    Parameter("eye_height", 0.062, 0.018),
    Parameter("eye_tilt", 0.0, 0.22),
    Parameter("iris_blue", 0.35, 0.35),
    Parameter("iris_green", 0.12, 0.12),
    Parameter("eye_socket", 0.20, 0.15),
    Parameter("brow_height", -0.30, 0.05),
    Parameter("brow_thickness", 0.040, 0.020),
    Parameter("brow_angle", 0.0, 0.22),
    Parameter("brow_length", 0.19, 0.04),
    Parameter("nose_length", 0.29, 0.07),
    Parameter("nose_width", 0.135, 0.045),
    Parameter("nose_bridge", 0.45, 0.25),
    Parameter("mouth_width", 0.26, 0.065),
    Parameter("mouth_height", 0.61, 0.06),
    Parameter("upper_lip", 0.050, 0.022),
    Parameter("lower_lip", 0.062, 0.026),
    Parameter("lip_redness", 0.16, 0.14),
    Parameter("mouth_curve", 0.0, 0.05),
    Parameter("ear_size", 0.15, 0.05),
    Parameter("freckles", 0.05, 0.30),
    Parameter("mole_x", 0.0, 0.45),
    Parameter("mole_y", 0.25, 0.45),
    Parameter("mole_size", 0.005, 0.025),
    Parameter("beard", 0.10, 0.70),
    Parameter("moustache", 0.05, 0.75),
    Parameter("wrinkles", 0.12, 0.18),
    Parameter("texture_1", 0.0, 0.07),
    Parameter("texture_2", 0.0, 0.07),
    Parameter("texture_3", 0.0, 0.07),
    Parameter("texture_4", 0.0, 0.07),
)
"""Who the face is: the parameters that all images of one person share."""

NUISANCE: tuple[Nuisance, ...] = (
    Nuisance("yaw", 0.0, 0.75, "pose"),
    Nuisance("pitch", 0.0, 0.40, "pose"),
    Nuisance("roll", 0.0, 0.20, "framing"),
    Nuisance("scale", 1.0, 0.14, "framing"),
    Nuisance("shift_x", 0.0, 0.14, "framing"),
    Nuisance("shift_y", 0.0, 0.14, "framing"),
    Nuisance("light_x", 0.0, 1.2, "light"),
    Nuisance("light_y", -0.4, 0.9, "light"),
    Nuisance("light_strength", 0.35, 0.65, "light", True),
    Nuisance("exposure", 1.0, 0.55, "light"),
    Nuisance("warmth", 0.0, 0.16, "light"),
    Nuisance("mouth_open", 0.0, 0.16, "expression", True),
    Nuisance("smile", 0.0, 0.13, "expression"),
    Nuisance("brow_raise", 0.0, 0.08, "expression"),
    Nuisance("eye_closure", 0.0, 0.85, "expression", True),
    Nuisance("gaze", 0.0, 0.06, "expression"),
    Nuisance("occluder_x", 0.0, 1.0, "occlusion"),
    Nuisance("occluder_y", 0.0, 1.0, "occlusion"),
    Nuisance("occluder_width", 0.0, 1.0, "occlusion", True),
    Nuisance("occluder_height", 0.0, 1.0, "occlusion", True),
    Nuisance("occluder_tilt", 0.0, 1.0, "occlusion"),
    Nuisance("occluder_red", 0.5, 0.5, "occlusion"),
    Nuisance("occluder_green", 0.5, 0.5, "occlusion"),
    Nuisance("occluder_blue", 0.5, 0.5, "occlusion"),
    Nuisance("clothes", 0.4, 0.4, "background"),
    Nuisance("background_red", 0.5, 0.40, "background"),
    Nuisance("background_green", 0.5, 0.40, "background"),
    Nuisance("background_blue", 0.5, 0.40, "background"),
    Nuisance("background_slope_x", 0.0, 0.30, "background"),
    Nuisance("background_slope_y", 0.0, 0.30, "background"),
    Nuisance("background_pattern", 0.0, 0.25, "background"),
    Nuisance("background_pitch", 1.2, 1.0, "background"),
    Nuisance("contrast", 1.0, 0.45, "camera"),
    Nuisance("brightness", 0.0, 0.20, "camera"),
    Nuisance("cast_red", 0.0, 0.10, "camera"),
    Nuisance("cast_blue", 0.0, 0.10, "camera"),
    Nuisance("blur", 0.0, 1.0, "camera", True),
    Nuisance("noise", 0.0, 0.05, "camera", True),
    Nuisance("noise_seed", 0.0, 1.0, "camera"),
)
"""How the face was photographed: the parameters that change from image to image."""


Share = Annotated[float, Field(ge=0, le=1)]


class Strength(Config):
    """How much photographs of one person differ, by group: 0 not at all, 1 the whole range.

    With the defaults, 32 pixels and 100 people x 20 images, a four-layer convolutional net with a
    cosine margin reaches TAR@FAR=1e-2 of about 0.6 on unseen people, raw pixels about 0.02.

    Attributes:
        pose: Yaw and pitch of the head.
        framing: In-plane roll, scale and translation, which alignment leaves behind.
        light: Direction, strength, exposure and colour of the light.
        expression: Mouth, brows, eyelids and gaze.
        occlusion: The fraction of images in which a patch, a scarf or a hand hides a part.
        background: What stands behind, and the clothes.
        camera: Contrast, brightness, colour cast, blur and sensor noise.
    """

    pose: Share = 0.6
    framing: Share = 0.6
    light: Share = 0.6
    expression: Share = 0.6
    occlusion: Share = 0.2
    background: Share = 1.0
    camera: Share = 0.6


def sample_identities(n: int, rng: np.random.Generator) -> Tensor:
    """Returns ``(n, len(IDENTITY))`` float32 people, each number uniform in [-1, 1].

    The first k rows do not depend on ``n``.

    Raises:
        ValueError: If ``n`` is negative.
    """
    _check_count(n)
    return torch.from_numpy(rng.uniform(-1, 1, (n, len(IDENTITY))).astype(np.float32))


def sample_nuisance(n: int, rng: np.random.Generator, strength: Strength) -> Tensor:
    """Returns ``(n, len(NUISANCE))`` float32 photographs with numbers in [-1, 1].

    The background is uniform, every other group normal (deviation 0.5, clipped at 1), each times
    its strength; one-sided parameters are never negative. An occluder is a patch anywhere (half of
    them), a scarf or a hand. The first k rows do not depend on ``n``, and another strength scales
    the same draws.

    Raises:
        ValueError: If ``n`` is negative.
    """
    _check_count(n)
    rows = [_photograph(rng, strength) for _ in range(n)]
    return torch.from_numpy(np.array(rows, np.float32).reshape(n, len(NUISANCE)))


def _photograph(rng: np.random.Generator, strength: Strength) -> NDArray[np.float64]:
    normal = np.clip(0.5 * rng.standard_normal(len(NUISANCE)), -1, 1)
    uniform = rng.uniform(-1, 1, len(NUISANCE))
    hidden = iter(_occluder(rng, strength.occlusion))
    values = np.empty(len(NUISANCE))
    for i, row in enumerate(NUISANCE):
        if row.group == "occlusion":
            values[i] = next(hidden)
        elif row.name == "noise_seed":
            values[i] = uniform[i]
        else:
            draw = uniform[i] if row.group == "background" else normal[i]
            values[i] = (abs(draw) if row.one_sided else draw) * getattr(strength, row.group)
    return values


def _occluder(rng: np.random.Generator, probability: float) -> NDArray[np.float64]:
    """One occluder's (x, y, width, height, tilt, red, green, blue); all zero: nothing hidden."""
    present, kind = rng.random(2)
    x, y, width, height, tilt, red, green, blue = rng.uniform(-1, 1, 8)
    tone = 0.15 + 0.45 * red
    if present >= probability:
        hidden = (0.0,) * 8
    elif kind < 0.5:  # a patch anywhere
        size = (0.32 + 0.15 * width, 0.32 + 0.15 * height)
        hidden = (0.7 * x, 0.7 * y, *size, tilt, red, green, blue)
    elif kind < 0.75:  # a scarf or a mask over the mouth
        size = (1.0, 0.42 + 0.12 * height)
        hidden = (0.0, 0.9 + 0.1 * y, *size, 0.1 * tilt, red, green, blue)
    else:  # a hand from the left or the right
        size = (0.45 + 0.1 * width, 0.2)
        hidden = (
            float(np.copysign(0.75, x)),
            0.35 + 0.4 * y,
            *size,
            tilt,
            tone + 0.25,
            tone,
            tone - 0.15,
        )
    return np.array(hidden)


def _check_count(n: int) -> None:
    if n < 0:
        raise ValueError(f"a sample needs n >= 0, got n={n}")
