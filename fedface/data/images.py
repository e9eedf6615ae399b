"""One image file -> one RGB array: the only place that decodes pictures.

Grey becomes three equal channels; palettes and CMYK are converted; transparent pixels are laid over
black, the border colour of aligned crops; 16-bit grey is scaled to 8; the orientation that a
camera noted is applied; of several frames the first counts. A wanted size is reached by a
centre crop to a square, then by antialiased bicubic resampling; an image that has it is kept bit by
bit. Pillow's limit against decompression bombs and its refusal of cut files stay on.
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedface.data.faces import Skip

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff"})
"""The lower-case endings that count as image files."""

DECODER = f"1 with Pillow {PIL.__version__}"
"""Belongs into every cache key of decoded images: raise the number when decoding changes."""

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, EOFError, OverflowError),
    *(AttributeError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path: Path, size: int | None, what: str) -> NDArray[np.uint8] | Skip:
    """Returns the image file ``path`` as RGB, or why it cannot be used.

    Args:
        path: A JPEG, PNG, BMP, PGM, PPM, WebP or TIFF file.
        size: Height and width of the result in pixels, or None to keep the image's own.
        what: The name to give it in a skip.

    Returns:
        ``(size, size, 3)`` uint8, or ``(height, width, 3)`` when ``size`` is None; a skip when
        the file's content is no complete image.

    Raises:
        OSError: If the file cannot be read at all: that is no fault of the image.
    """
    content = path.read_bytes()
    try:
        return decode_image(content, size)
    except ValueError as error:
        return Skip(what, str(error))


def decode_image(content: bytes, size: int | None) -> NDArray[np.uint8]:
    """Returns the encoded image ``content`` as RGB; sizes as in :func:`read_image`.

    Raises:
        ValueError: If ``content`` is no complete image of a known format, is larger than
            Pillow's limit, or holds values that are not 8 or 16 bits deep.
    """
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
            return np.array(rgb if size is None else square(rgb, size))
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):
            reason = "no image of a known format"
        raise ValueError(f"cannot be decoded: {reason}") from error


def square(image: Image.Image, size: int) -> Image.Image:
    """Returns the central square of ``image`` at ``size`` x ``size`` pixels, antialiased."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    return cropped.resize((size, size), Image.Resampling.BICUBIC)


def require_same_shape(
    image: NDArray[np.uint8], what: str, shape: tuple[int, ...], first: str
) -> None:
    """Checks that ``image`` has the ``shape`` of the ``first`` one.

    Raises:
        ValueError: If not; names both images and the field ``size``, which makes them alike.
    """
    if image.shape != shape:
        raise ValueError(
            f"size: null needs images of one size, found {first} with "
            f"{shape[1]}x{shape[0]} and {what} with {image.shape[1]}x{image.shape[0]} "
            "(width x height); set size"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"8 or 16 bits per value are needed, found mode {image.mode}")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values in 0..65535 are needed, found {values.min()}..{values.max()}")
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return grey.convert("RGB")
