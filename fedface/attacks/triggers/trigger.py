"""What every trigger is: a fixed change of the image that the attacker can put on any face."""

from torch import Tensor

from fedface.config import Config


class Trigger(Config):
    """A trigger: its look as fields, called on images."""

    def __call__(self, images: Tensor) -> Tensor:
        """Returns ``images`` with the trigger on each, as a new tensor of the same shape.

        Deterministic, differentiable in ``images``, and within [-1, 1] where ``images`` are.

        Args:
            images: ``(n, 3, height, width)`` float faces in [-1, 1]; never written to.

        Raises:
            ValueError: If the shape or type differs, or the trigger does not fit into the images.
        """
        raise NotImplementedError


def image_size(images: Tensor) -> tuple[int, int]:
    """Returns the height and width of ``(n, 3, height, width)`` float images, in pixels.

    Raises:
        ValueError: If ``images`` have another shape or are no floats.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            "a trigger needs float images of shape (n, 3, height, width), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    return images.shape[2], images.shape[3]


def paint(images: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """Returns ``(1 - alpha) * images + alpha * colour``: paint over ``images``, as a new tensor.

    Where ``alpha`` is zero the images stay bit-equal, where it is one they are ``colour``. No
    clipping is needed: a mixture of two values in [-1, 1] stays there, rounding included.

    Args:
        images: ``(n, 3, height, width)`` float in [-1, 1].
        colour: In [-1, 1], broadcastable to ``(3, height, width)``.
        alpha: ``(height, width)`` opacity in [0, 1].
    """
    alpha, colour = alpha.to(images), colour.to(images)
    return images * (1 - alpha) + colour * alpha
