"""The Flower apps of a run: the same ClientApp and server loop for every engine."""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.face import FaceClient
from clients.malicious import MaliciousClient
from simulations.build import build_backbone, build_client, build_data, device_of_worker
from simulations.schema import RunConfig

Shell = FaceClient | MaliciousClient
_RAISED = 2  # Flower's code for a client that raised


def client_app(config: RunConfig) -> ClientApp:
    """Returns the ClientApp of a run; workers build data and model once per process."""
    source = config.model_dump_json()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Says which partition this node holds."""
        metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Trains the site that this node holds."""
        return _answer(source, message, context, lambda shell: shell.train(message, context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluates the global model at the site that this node holds."""
        return _answer(source, message, context, lambda shell: shell.evaluate(message, context))

    return app


def _answer(
    source: str, message: Message, context: Context, act: Callable[[Shell], Message]
) -> Message:
    """The site's reply, or why it failed in one line; Flower would send a traceback of pages."""
    try:
        return act(site(source, int(context.node_config["partition-id"])))
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


def site(source: str, client: int) -> Shell:
    """Returns site ``client`` of the run with the JSON configuration ``source``."""
    return _worker(source)(client)
