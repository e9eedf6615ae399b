"""The Flower apps of a run: the same ClientApp and server loop for every engine."""

from collections.abc import Callable
from functools import lru_cache

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.face import FaceClient
from clients.malicious import MaliciousClient
from simulations.build import build_backbone, build_client, build_data, device_of_worker
from simulations.schema import RunConfig


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
        return site(source, int(context.node_config["partition-id"])).train(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluates the global model at the site that this node holds."""
        return site(source, int(context.node_config["partition-id"])).evaluate(message, context)

    return app


@lru_cache(maxsize=1)
def _worker(source: str) -> Callable[[int], FaceClient | MaliciousClient]:
    """Data, backbone and device of one run in this process; sites are made of them on demand."""
    config = RunConfig.model_validate_json(source)
    device = device_of_worker()
    data = build_data(config)
    backbone = build_backbone(config, data.train.images.shape[1])
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lru_cache(maxsize=None)(
        lambda client: build_client(config, data, client, backbone, device)
    )


def site(source: str, client: int) -> FaceClient | MaliciousClient:
    """Returns site ``client`` of the run with the JSON configuration ``source``."""
    return _worker(source)(client)
