"""The Flower apps of a run: the same ClientApp and server loop for every engine."""

import logging
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from clients.face import FaceClient
from clients.gate import Gate
from clients.malicious import MaliciousClient
from simulations.build import build_backbone, build_client, build_data, device_of_worker
from simulations.gates import GateOf, simulated_gate, through
from simulations.schema import RunConfig

Shell = FaceClient | MaliciousClient
_RAISED = 2  # Flower's code for a client that raised


Find = Callable[[Message, Context], Shell]
"""Which site a message is for, as a client of its run."""


def client_app(config: RunConfig) -> ClientApp:
    """Returns the ClientApp of a run; workers build data and model once per process."""
    source = config.model_dump_json()
    return shell_app(
        lambda _, context: site(source, int(context.node_config["partition-id"])),
        lambda context: _gate(source, int(context.node_config["partition-id"])),
    )


def shell_app(find: Find, gate_of: GateOf = lambda _: None) -> ClientApp:
    """Returns the ClientApp of whatever sites ``find`` knows; replies pass the site's gate."""
    app = ClientApp(mods=[through(gate_of)])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Says which partition this node holds."""
        metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Trains the site that this node holds."""
        return _answer(message, lambda: find(message, context).train(message, context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluates the global model at the site that this node holds."""
        return _answer(message, lambda: find(message, context).evaluate(message, context))

    return app


def _answer(message: Message, act: Callable[[], Message]) -> Message:
    """The site's reply, or why it failed in one line; Flower would send a traceback of pages."""
    try:
        return act()
    except Exception as error:
        logging.getLogger(__name__).exception("client failed")
        return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


@lru_cache(maxsize=1)
def _worker(source: str) -> Callable[[int], Shell]:
    """Data, backbone and device of one run in this process; sites are made of them on demand."""
    config = RunConfig.model_validate_json(source)
    device = device_of_worker()
    data = build_data(config)
    backbone = build_backbone(config, data.train.images.shape[1])
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.model.compile:
        backbone.compile()
    return lru_cache(maxsize=None)(
        lambda client: build_client(config, data, client, backbone, device)
    )


@cache
def _gate(source: str, client: int) -> Gate | None:
    """The gate of one site of the run, if it has one."""
    config = RunConfig.model_validate_json(source)

    def backbone() -> nn.Module:
        shell = site(source, client)
        return shell.backbone if isinstance(shell, FaceClient) else shell.client.backbone

    return simulated_gate(config, client, backbone)


def site(source: str, client: int) -> Shell:
    """Returns site ``client`` of the run with the JSON configuration ``source``."""
    return _worker(source)(client)
