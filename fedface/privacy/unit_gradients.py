"""The gradients of a batch's units, whole or as factors: their lengths and their weighted sum."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Factored(NamedTuple):
    """Gradients left @ right^T, one per unit: ``(n_units, out, k)`` and ``(n_units, in, k)``."""

    parameter: nn.Parameter
    left: Tensor
    right: Tensor


class Whole(NamedTuple):
    """A gradient per unit, ``(n_units, ...)``."""

    parameter: nn.Parameter
    gradients: Tensor


class Units:
    """Which images of a batch belong to which unit.

    Attributes:
        grouped: Whether units have several images.
        owners: ``(n_images,)`` int64, the unit of each image.
        n: How many units.
        shares: ``(n_images,)`` one over the number of images of the image's unit.
    """

    def __init__(self, n_images: int, owners: Tensor | None, device: torch.device) -> None:
        """Takes ``owners``, each of 0..n-1 at least once; None where each image is a unit."""
        self.grouped = owners is not None
        self.owners = torch.arange(n_images) if owners is None else owners
        self.owners = self.owners.to(device)
        self.n = n_images if owners is None else int(owners.max()) + 1
        self.shares = 1.0 / torch.bincount(self.owners, minlength=self.n)[self.owners]

    def zeros(self) -> Tensor:
        """Returns ``(n,)`` float64 zeros."""
        return torch.zeros(self.n, dtype=torch.float64, device=self.owners.device)

    def joined(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns factors of the units' mean gradients from ``(n_images, ..., k)`` of the images.

        A unit's images stand side by side, ``(n, ..., k * most)``, zeros behind those of units with
        fewer than the most images.
        """
        if not self.grouped:
            return left, right
        return self._side_by_side(left * self.shares[:, None, None]), self._side_by_side(right)

    def _side_by_side(self, factors: Tensor) -> Tensor:
        before = functional.one_hot(self.owners, self.n).cumsum(0)
        place = before.gather(1, self.owners[:, None]).squeeze(1) - 1
        most = int(place.max()) + 1
        wide = factors.new_zeros(self.n, factors.shape[1], most, factors.shape[2])
        wide[self.owners, :, place] = factors
        return wide.flatten(2)

    def mean(self, gradients: Tensor) -> Tensor:
        """Returns ``(n, ...)``, the mean over each unit's images of ``(n_images, ...)``."""
        if not self.grouped:
            return gradients
        flat = gradients.flatten(1) * self.shares[:, None]
        total = flat.new_zeros(self.n, flat.shape[1]).index_add_(0, self.owners, flat)
        return total.view(self.n, *gradients.shape[1:])


def squares(piece: Factored | Whole) -> Tensor:
    """Returns ``(n_units,)`` float64, the squared lengths of the units' gradients."""
    if isinstance(piece, Whole):
        norms: Tensor = torch.linalg.vector_norm(piece.gradients.flatten(1), dim=1)
        return norms.double().square()
    left, right = piece.left.double(), piece.right.double()
    if left.shape[2] == 1:
        return left.square().sum((1, 2)) * right.square().sum((1, 2))
    grams: Tensor = (left.mT @ left) * (right.mT @ right)
    return grams.sum((1, 2))


def weighted(piece: Factored | Whole, factors: Tensor) -> Tensor:
    """Returns the sum of the units' gradients times ``(n_units,)`` factors, parameter-shaped."""
    if isinstance(piece, Whole):
        return (factors @ piece.gradients.flatten(1)).view_as(piece.parameter)
    left = (piece.left * factors[:, None, None]).transpose(0, 1).flatten(1)
    right = piece.right.transpose(0, 1).flatten(1)
    product: Tensor = left @ right.T
    return product.view_as(piece.parameter)
