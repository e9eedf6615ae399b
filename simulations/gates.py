"""The gates of a run: which site's replies pass which policy."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from torch import nn

from clients.gate import Gate, denial
from clients.policy import Shape, load_policy
from clients.receipts import Receipts
from fedface import parameters
from fedface.config import ConfigError
from fedface.parameters import Layout
from simulations.build import malicious_clients, site_folder
from simulations.deploy.order import read_order
from simulations.deploy.settings import SiteFolder
from simulations.policies import run_hash
from simulations.schema import RunConfig

RECEIPTS = "receipts"
"""Where a real site's receipts are, in its folder."""

GateOf = Callable[[Context], Gate | None]
Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def simulated_gate(
    config: RunConfig, client: int, backbone: Callable[[], nn.Module]
) -> Gate | None:
    """Returns the gate of simulated site ``client`` of a run, or None where it has none.

    Args:
        config: The run.
        client: The site's partition id.
        backbone: The run's backbone, asked for where a policy says ``backbone``.
    """
    policy = None if config.policy is None else config.policy.of(client)
    if policy is None or client in malicious_clients(config):
        return None
    receipts = Receipts(site_folder(config, client))
    return Gate(policy, receipts, lambda: shapes_of(backbone()), run_hash(config))


def site_gate(folder: SiteFolder, context: Context, fab_hash: str) -> Gate:
    """Returns the gate of the real site in ``folder``, as its policy file says.

    Args:
        folder: The site's.
        context: Flower's, which names the run.
        fab_hash: SHA-256 of the bundle that the run was submitted with; empty if not known.

    Raises:
        ConfigError: If the policy cannot be used; nothing may leave then.
    """
    settings = folder.settings
    policy = load_policy(settings.policy)
    try:
        asked = run_hash(read_order(context).config)
    except ConfigError:
        asked = None  # the app will say what is wrong with the order
    if not policy.explicit:
        raise ConfigError(
            f"{settings.policy}: needed names and shapes of tensors, found 'backbone' "
            "(`fedface site policy CONFIG` writes the list)"
        )
    receipts = Receipts(folder.path / RECEIPTS, settings.key)
    return Gate(policy, receipts, run_hash=asked, app=fab_hash or None)


def shapes_of(backbone: nn.Module) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Returns names and shapes of a backbone's trainable parameters and of its buffers."""
    weights = {slot.name: slot.shape for slot in Layout.of(backbone).slots}
    buffers = {name: tuple(v.shape) for name, v in parameters.buffers(backbone).items()}
    return weights, buffers


def through(gate_of: GateOf) -> Mod:
    """Returns a Flower client mod that answers through the gate of the node, if it has one."""

    def gated(
        message: Message, context: Context, app: Callable[[Message, Context], Message]
    ) -> Message:
        try:
            gate = gate_of(context)
        except ConfigError:
            logging.getLogger(__name__).exception("the site's policy cannot be used")
            return denial(message, "its policy cannot be used")
        return app(message, context) if gate is None else gate(message, context, app)

    return gated
