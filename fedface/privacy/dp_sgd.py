"""The gradient of DP-SGD: each unit's gradient clipped, then summed. The one import of Opacus.

Abadi et al., CCS 2016 (https://arxiv.org/abs/1607.00133). A unit is an image, or a subject: the
mean over several images of one person, clipped once, so that no person has more influence than one
clip norm however many images there are of it.

One forward pass, one backward pass down to the layers' outputs (the plain weight gradients are not
computed), then layer by layer what is cheapest:

* *ghost norms* (Goodfellow 2015; Li et al. 2022) where a layer's gradient is a short sum of outer
  products: the norm follows from two small Gram matrices and the clipped sum is one product; the
  unit's own gradient never exists. Linear layers, and convolutions with small feature maps (the
  choice of Bu, Mao and Xu, NeurIPS 2022); a subject's images stand side by side in its factors.
* else each unit's gradient: of convolutions as one product, of other layers by Opacus's per-sample
  rules, by ``torch.func`` through Opacus where it has no rule (PReLU) or a slow one (depthwise
  convolutions), and for the head.

Gram matrices are taken in float64: a norm that rounding makes too small would be clipped too
little. Memory beyond plain training: ``units * 4`` bytes times the parameters of the layers
without ghost norms and ``images * 4`` times those of the head, and the unfolded activations.

Opacus's ``PrivacyEngine`` is not used: it divides by ``int(n * rate)``, which tells the private n
(issues meta-pytorch/opacus#571 and #819: neighbours of small or unlucky n can be told apart at any
accounted epsilon), and takes its sampling rate from n as well. Here both are public constants.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from fedface.privacy.unfit import refuse_unfit
from fedface.privacy.unit_gradients import Factored, Units, Whole, squares, weighted

_ORDERS = [1 + x / 10 for x in range(1, 100)] + [
    *range(11, 64),
    72,
    80,
    96,
    128,
    192,
    256,
    384,
    512,
]
_ROUND_DOWN = 1 - 2**-16


def rdp_epsilon(history: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Returns Opacus's RDP epsilon of (noise multiplier, sample rate, steps) entries."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():  # that the best order is the last one makes the bound loose
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta, alphas=_ORDERS))


def prv_epsilon(history: Iterable[tuple[float, float, int]], delta: float, upper: float) -> float:
    """Returns the upper end of Opacus's PRV epsilon, or infinity where it cannot be computed.

    Args:
        history: As :func:`rdp_epsilon`.
        delta: In (0, 1).
        upper: A known bound; the grid's error is a hundredth of it, and 0.01 at most.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            error = min(0.01, max(1e-3, upper / 100))
            found = float(accountant.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError):
        return math.inf
    return found if math.isfinite(found) else math.inf


class _Seen(NamedTuple):
    """What one layer got and gave in a forward pass."""

    layer: nn.Module
    activation: Tensor
    output: Tensor
    version: int


class ClippedSum:
    """Sums units' clipped gradients of backbone and head; a context manager.

    Attributes:
        parameters: What is trained, backbone first.
        sums: The sum for each parameter since :meth:`reset`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, clip: float) -> None:
        """Prepares both modules; their parameters and modes stay as they are.

        Args:
            backbone: ``(batch, 3, h, w)`` -> ``(batch, d)``.
            head: ``(embeddings, labels) -> logits``.
            clip: C, the largest Euclidean length of a unit's gradient (both modules together).

        Raises:
            ValueError: As :func:`refuse_unfit`.
        """
        refuse_unfit(backbone)
        if list(head.buffers()):
            raise ValueError("differential privacy needs a head without buffers")
        self.backbone, self.head, self.clip = backbone, head, clip
        self._layers = [
            m for m in backbone.modules() if any(p.requires_grad for p in m.parameters(False))
        ]
        self._heads = {n: p for n, p in head.named_parameters() if p.requires_grad}
        trained = [p for p in backbone.parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [*trained, *self._heads.values()]
        self.sums: list[Tensor] = []
        self._seen: list[_Seen] = []
        self._hooks: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Starts new sums at zero."""
        self.sums = [torch.zeros_like(p) for p in self.parameters]

    def __enter__(self) -> Self:
        """Attaches hooks to the backbone's layers."""
        from opacus.grad_sample.functorch import prepare_layer

        for layer in self._layers:
            if _sampler(layer) is None:
                prepare_layer(layer)
        self._hooks = [layer.register_forward_hook(self._record) for layer in self._layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the backbone as it was."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            if hasattr(layer, "ft_compute_sample_grad"):
                del layer.ft_compute_sample_grad

    def add(self, images: Tensor, labels: Tensor, owners: Tensor | None = None) -> float:
        """Adds the clipped gradients of the units in a batch; returns the images' summed loss.

        Args:
            images: ``(batch, 3, h, w)``, at least one; all images of a unit that take part.
            labels: ``(batch,)`` rows of the head.
            owners: ``(batch,)`` int64, the unit of each image, each of 0..n_units - 1 at least
                once; None where each image is a unit.

        Raises:
            ValueError: If a gradient is not finite or a layer is used twice or changed in place.
        """
        self._seen.clear()
        with torch.enable_grad():
            embeddings = self.backbone(images)
        head, towards, losses = self._through_head(embeddings.detach(), labels)
        outputs = self._outputs()
        backward = torch.autograd.grad(embeddings, outputs, towards)
        units = Units(len(images), owners, images.device)
        pieces: list[Factored | Whole] = []
        with torch.no_grad():
            for seen, gradient in zip(self._seen, backward, strict=True):
                pieces += _pieces(seen.layer, seen.activation, gradient.contiguous(), units)
            pieces += [Whole(self._heads[n], units.mean(g)) for n, g in head.items()]
            norms = sum((squares(p) for p in pieces), units.zeros()).clamp(min=0).sqrt()
            if not bool(torch.isfinite(norms).all()):
                raise ValueError(
                    "DP-SGD needs finite gradients, got NaN or infinity "
                    "(lower training.optimizer.learning_rate)"
                )
            factors = (self.clip * _ROUND_DOWN / norms.clamp(min=1e-12)).clamp(max=1).float()
            sums = {id(p): total for p, total in zip(self.parameters, self.sums, strict=True)}
            for piece in pieces:
                sums[id(piece.parameter)].add_(weighted(piece, factors))
        self._seen.clear()
        return float(losses.sum())

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen.append(_Seen(layer, inputs[0].detach(), output, output._version))

    def _outputs(self) -> list[Tensor]:
        """The layers' outputs, every layer exactly once and untouched."""
        if len({id(s.layer) for s in self._seen}) != len(self._seen):
            raise ValueError(
                "DP-SGD needs every layer used once in a forward pass, found one twice"
            )
        if len(self._seen) != len(self._layers):
            raise ValueError(
                "DP-SGD needs every trained layer in each forward pass, found one idle"
            )
        if any(s.output._version != s.version for s in self._seen):
            raise ValueError("DP-SGD needs layers whose outputs are not changed in place")
        return [s.output for s in self._seen]

    def _through_head(
        self, embeddings: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Per image: the head's gradients, the gradient at the embedding, the loss."""

        def loss(weights: dict[str, Tensor], embedding: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(self.head, weights, (embedding[None], label[None]))
            return functional.cross_entropy(logits.float(), label[None])

        each = vmap(grad_and_value(loss, argnums=(0, 1)), in_dims=(None, 0, 0))
        weights = {name: p.detach() for name, p in self._heads.items()}
        (head, towards), losses = each(weights, embeddings, labels)
        return head, towards, losses


def _sampler(layer: nn.Module) -> Callable[..., dict[nn.Parameter, Tensor]] | None:
    """Opacus's rule for the layer, None where ``torch.func`` does it or does it faster."""
    from opacus.grad_sample import GradSampleModule

    if getattr(layer, "groups", 1) > 1:
        return None
    found: Callable[..., dict[nn.Parameter, Tensor]] | None
    found = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    return found


def _pieces(
    layer: nn.Module, activation: Tensor, gradient: Tensor, units: Units
) -> Sequence[Factored | Whole]:
    """The gradients of a layer's parameters, in the cheapest form."""
    factors = _factors(layer, activation, gradient)
    if factors is None:
        each = _per_image(layer, activation, gradient)
        return [Whole(p, units.mean(g)) for p, g in each.items() if p.requires_grad]
    found: list[Factored | Whole] = []
    if isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad:
        left, right = units.joined(*factors)
        n_out, n_in, k = left.shape[1], right.shape[1], left.shape[2]
        if k == 1 or 2 * k * (n_in + n_out) < n_in * n_out:
            found.append(Factored(layer.weight, left, right))
        else:
            whole = torch.bmm(left, right.mT).view(units.n, *layer.weight.shape)
            found.append(Whole(layer.weight, whole))
    if isinstance(layer.bias, nn.Parameter) and layer.bias.requires_grad:
        found.append(Whole(layer.bias, units.mean(factors[0].sum(2))))
    return found


def _per_image(
    layer: nn.Module, activation: Tensor, gradient: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Opacus's per-sample gradients."""
    from opacus.grad_sample.functorch import ft_compute_per_sample_gradient

    sampler = _sampler(layer) or ft_compute_per_sample_gradient
    found: dict[nn.Parameter, Tensor] = sampler(layer, [activation], gradient)
    return found


def _factors(
    layer: nn.Module, activation: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The outer products ``(n, out, k)`` and ``(n, in, k)`` that sum to the weight's gradient."""
    if type(layer) is nn.Linear and activation.ndim == 2:
        return gradient[:, :, None], activation[:, :, None]
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if isinstance(layer.padding, str):
        return None
    unfolded = functional.unfold(
        activation, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    return gradient.flatten(2), unfolded
