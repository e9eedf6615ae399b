"""Structural similarity of images.

Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity", IEEE TIP 2004, equation 13, with the paper's constants: an 11 x 11 Gaussian window of
standard deviation 1.5, K1 = 0.01, K2 = 0.03, and the mean over all places where the window fits.

Of colour images the mean over the channels is taken (the paper has grey images only). A flat grey
picture already scores well above 0 against a smooth one: report it beside every figure.
"""

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def ssim(images: Tensor, others: Tensor, white: float = 1.0) -> Tensor:
    """Returns ``(n,)`` float64 similarities, pair by pair, in [-1, 1]; 1 for equal images.

    Args:
        images: ``(n, channels, height, width)``, black 0 and white L. The measure compares mean
            luminances by their ratio, so images in [-1, 1] have to be shifted first.
        others: The same shape.
        white: L, above 0.

    Raises:
        ValueError: If the shapes differ, a side is below 11 pixels, or a pixel is outside
            [0, L].
    """
    if images.shape != others.shape or images.ndim != 4 or min(images.shape[2:]) < _WINDOW:
        raise ValueError(
            "ssim needs two sets of shape (n, channels, height >= 11, width >= 11), "
            f"got {tuple(images.shape)} and {tuple(others.shape)}"
        )
    x, y = images.double(), others.double()
    for pixels in (x, y):
        inside = (pixels >= -1e-6 * white) & (pixels <= (1 + 1e-6) * white)
        if not (white > 0 and bool(inside.all())):
            raise ValueError(f"ssim needs white > 0 and pixels in [0, {white}], got others")
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * white) ** 2, (_K2 * white) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """The Gaussian-weighted mean around every place where the whole window fits."""
    offset = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    weight = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    n, channels, height, width = images.shape
    planes = images.reshape(n * channels, 1, height, width)
    rows = functional.conv2d(planes, weight.view(1, 1, -1, 1))
    blurred = functional.conv2d(rows, weight.view(1, 1, 1, -1))
    return blurred.reshape(n, channels, *blurred.shape[2:])
