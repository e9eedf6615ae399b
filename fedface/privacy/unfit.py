"""Which networks differential privacy cannot be promised for, and why."""

from torch import nn


def refuse_unfit(model: nn.Module, what: str = "backbone") -> None:
    """Checks that one image's output depends on that image and the parameters alone.

    Raises:
        ValueError: If there are batch normalisations (named) or other buffers, or parameters that
            belong to a module with children.
    """
    batch = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if batch:
        shown = ", ".join(batch[:5]) + (", ..." if len(batch) > 5 else "")
        raise ValueError(
            f"differential privacy needs a {what} without batch normalisation, which mixes the "
            f"people of a batch, found {len(batch)} such layer(s): {shown} (set norm: group)"
        )
    if buffers := [name for name, _ in model.named_buffers()]:
        raise ValueError(
            f"differential privacy needs a {what} without buffers, which would leave the site "
            f"without noise, found {', '.join(buffers[:5])}"
        )
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)) and list(module.children()):
            raise ValueError(
                f"differential privacy needs the {what}'s parameters in modules without children, "
                f"found {name or type(model).__name__}"
            )
