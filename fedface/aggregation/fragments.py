"""Updates cut into fragments: the slice that belongs to one filter or one output neuron.

ARIBA's abstracts speak of "filters of CNN layers" (v1) and of "fragment vectors representing
small portions of parameters" (v2). A fragment is here one row of a weight: ``C_in * k * k``
numbers of a convolution ``[C_out, C_in, k, k]``, ``in`` numbers of a linear layer ``[out, in]``,
followed by that row's bias where the layer has one (Bilgin et al., arXiv 2111.14683, find the
anomaly concentrated in the last layer's bias). One-dimensional parameters that are no bias of
such a layer (normalisation, PReLU) and parameters whose name does not end in "weight" (tokens,
position embeddings) have no rows and are no fragments.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fedface.aggregation.cohort import Cohort
from fedface.parameters import Layout, Slot

EVERY = slice(None)


@dataclass(frozen=True)
class FragmentLayer:
    """One layer with rows.

    Attributes:
        name: The layer's name, e.g. ``"stages.0.conv1"``.
        weight: Where its weight lies.
        bias: Where its bias lies, or None.
    """

    name: str
    weight: Slot
    bias: Slot | None

    @property
    def n_fragments(self) -> int:
        """The number of filters or output neurons: F."""
        return self.weight.shape[0]

    @property
    def fragment_dim(self) -> int:
        """The length of one fragment: d, the bias included."""
        return prod(self.weight.shape[1:]) + (self.bias is not None)


def fragment_layers(layout: Layout) -> tuple[FragmentLayer, ...]:
    """Returns the layers of ``layout`` that have fragments, in order; empty layers are left out."""
    slots = {slot.name: slot for slot in layout.slots}
    layers = []
    for slot in layout.slots:
        if not slot.name.endswith("weight") or len(slot.shape) < 2 or slot.stop == slot.start:
            continue
        bias = slots.get(slot.name.removesuffix("weight") + "bias")
        if bias is not None and bias.shape != slot.shape[:1]:
            bias = None
        layers.append(FragmentLayer(slot.name.removesuffix(".weight"), slot, bias))
    return tuple(layers)


def cut(updates: Tensor, layer: FragmentLayer, which: slice = EVERY) -> Tensor:
    """Returns ``layer``'s fragments of every client.

    Args:
        updates: ``(n_clients, dim)`` client updates.
        layer: A layer of their layout.
        which: The fragments wanted.

    Returns:
        ``(n_clients, n_fragments, fragment_dim)``: a view of ``updates`` where the layer has no
        bias, a copy where it has one (it lies elsewhere in the row).
    """
    rows = updates[:, layer.weight.start : layer.weight.stop]
    rows = rows.reshape(len(updates), layer.n_fragments, -1)[:, which]
    if layer.bias is None:
        return rows
    bias = updates[:, layer.bias.start : layer.bias.stop][:, which]
    return torch.cat((rows, bias[:, :, None]), dim=2)


def fragments(cohort: Cohort) -> dict[str, Tensor]:
    """Returns every layer's fragments by layer name, each as :func:`cut` gives them."""
    return {layer.name: cut(cohort.updates, layer) for layer in fragment_layers(cohort.layout)}
