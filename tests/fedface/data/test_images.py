from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedface.data.faces import Skip
from fedface.data.images import decode_image, read_image, require_same_shape, square


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_rgb_is_kept_bit_by_bit(kind: str) -> None:
    pixels = noise(5, 7, 3)
    found = decode_image(encoded(Image.fromarray(pixels), kind), None)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_an_image_of_the_wanted_size_is_not_resampled() -> None:
    pixels = noise(9, 9, 3)
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels)), 9), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(kind: str) -> None:
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = decode_image(encoded(Image.fromarray(pixels), kind), None)
    assert np.abs(found.astype(int) - pixels).max() <= 4


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    return image


def deep(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


RGBA = Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 51]]], np.uint8))
GREY_ALPHA = Image.fromarray(np.array([[[80, 255], [80, 0]]], np.uint8), "LA")
MODES = {
    "grey": (Image.fromarray(np.array([[0, 77]], np.uint8)), {}, [[0] * 3, [77] * 3]),
    "bits": (Image.fromarray(np.array([[True, False]])), {}, [[255] * 3, [0] * 3]),
    "palette": (palette(), {}, [[10, 20, 30], [40, 50, 60]]),
    "palette, one transparent": (palette(), {"transparency": 0}, [[0, 0, 0], [40, 50, 60]]),
    "alpha over black": (RGBA, {}, [[200, 100, 50], [40, 20, 10]]),
    "grey alpha": (GREY_ALPHA, {}, [[80] * 3, [0] * 3]),
    "16 bits": (deep(0, 128 * 257), {}, [[0] * 3, [128] * 3]),
    "16 bits, rounded": (deep(65535, 257 + 129), {}, [[255] * 3, [2] * 3]),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_become_rgb(mode: str) -> None:
    image, options, expected = MODES[mode]
    assert decode_image(encoded(image, **options), None).tolist() == [expected]


def test_16_bit_pgm_and_cmyk_become_rgb() -> None:
    pgm = b"P5 2 1 65535\n" + np.array([0, 65535], ">u2").tobytes()
    assert decode_image(pgm, None).tolist() == [[[0] * 3, [255] * 3]]
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode_image(encoded(red, "TIFF"), None)[0, 0].tolist() == [255, 0, 0]


def test_depths_without_a_known_range_are_refused() -> None:
    for pixels in (np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)):
        with pytest.raises(ValueError, match="8 or 16 bits per value are needed, found mode"):
            decode_image(encoded(Image.fromarray(pixels), "TIFF"), None)


def test_the_noted_orientation_is_applied() -> None:
    pixels = noise(3, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    found = decode_image(encoded(Image.fromarray(pixels), exif=exif), None)
    assert np.array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (5, 8), (6, 6)])
def test_square_is_the_central_square(shape: tuple[int, int]) -> None:
    pixels = noise(*shape, 3)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    found = np.array(square(Image.fromarray(pixels), side))
    assert np.array_equal(found, pixels[top : top + side, left : left + side])


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode_image(encoded(Image.fromarray(stripes)), 8)
    assert found.shape == (8, 8, 3)
    # The filter is cut off at the borders; nearest or plain bicubic sampling is off by over 100.
    assert np.abs(found.astype(int) - 127).max() <= 6


def test_enlarging_keeps_a_plain_colour() -> None:
    plain = Image.new("RGB", (92, 112), (10, 20, 30))
    found = decode_image(encoded(plain), 112)
    assert found.shape == (112, 112, 3)
    assert (found == (10, 20, 30)).all()


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "cut png": encoded(Image.fromarray(noise(32, 32, 3)))[:-900],
    "cut jpeg": encoded(Image.fromarray(noise(32, 32, 3)), "JPEG")[:-200],
    "cut pgm": b"P5 10 10 255\n" + bytes(99),
    "gif": encoded(Image.new("L", (4, 4)), "GIF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_complete_image_is_skipped_by_name(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.png").write_bytes(BROKEN[case])
    found = read_image(tmp_path / "a.png", 8, "ann/a.png")
    assert isinstance(found, Skip)
    assert found.what == "ann/a.png"
    assert found.why.startswith("cannot be decoded: ")
    assert len(found.why) > len("cannot be decoded: ")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    kinds = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
    originals = [encoded(Image.fromarray(noise(12, 10, 3)), kind) for kind in kinds]
    n_refused = 0
    for original in originals:
        for _ in range(100):
            damaged = bytearray(original)
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] = rng.integers(256)
            try:
                found = decode_image(bytes(damaged[: rng.integers(1, 2 * len(damaged))]), 8)
            except ValueError:
                n_refused += 1
            else:
                assert found.shape == (8, 8, 3)
    assert 100 < n_refused < 500


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_against_bombs_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (100, 100)))
    assert decode_image(content, 8).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match="decompression bomb"):
        decode_image(content, 8)


def test_a_file_that_cannot_be_read_is_no_skip(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png", 8, "absent")


def test_images_that_differ_are_named_with_the_field() -> None:
    require_same_shape(noise(2, 3, 3), "b", (2, 3, 3), "a")
    with pytest.raises(
        ValueError, match=r"size: null .* found a with 3x2 and b with 2x2 .*; set size"
    ):
        require_same_shape(noise(2, 2, 3), "b", (2, 3, 3), "a")
