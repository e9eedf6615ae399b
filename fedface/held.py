"""Arrays whose values their process holds already, so that nobody has to read them from bytes."""

from torch import Tensor


class Held:
    """What such arrays have in common, whatever else they are.

    Engines that share memory with their workers hand updates over in this form. What comes over a
    network is bytes, always: a sender cannot choose this type.

    Attributes:
        values: On the CPU; nobody writes there.
        owner: What has to live as long as the values.
    """

    values: Tensor
    owner: object
