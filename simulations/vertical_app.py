"""The ClientApp of a vertical run: the same for every engine."""

import logging
from collections.abc import Callable
from functools import lru_cache

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.vertical import VerticalClient
from simulations.build import device_of_worker
from simulations.vertical_build import build_client, build_records
from simulations.vertical_schema import VerticalConfig

_RAISED = 2  # Flower's code for a client that raised


def vertical_client_app(config: VerticalConfig) -> ClientApp:
    """Returns the ClientApp of a run; workers build records once per process."""
    source = config.model_dump_json()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Says which partition this node holds."""
        metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.query("align")
    def align(message: Message, context: Context) -> Message:
        """Sends the tokens of this party's records."""
        return _answer(source, message, context, lambda party: party.align(message, context))

    @app.train("embed")
    def embed(message: Message, context: Context) -> Message:
        """Releases the embeddings of a training batch."""
        return _answer(source, message, context, lambda party: party.train(message, context))

    @app.train("backward")
    def backward(message: Message, context: Context) -> Message:
        """Steps along a gradient and releases the next batch."""
        return _answer(source, message, context, lambda party: party.train(message, context))

    @app.train("save")
    def save(message: Message, context: Context) -> Message:
        """Writes this party's state down."""
        return _answer(source, message, context, lambda party: party.save(message, context))

    @app.evaluate("embed")
    def evaluate(message: Message, context: Context) -> Message:
        """Releases embeddings for inference."""
        return _answer(source, message, context, lambda party: party.evaluate(message, context))

    return app


def _answer(
    source: str,
    message: Message,
    context: Context,
    act: Callable[[VerticalClient], Message],
) -> Message:
    """The party's reply, or why it failed in one line; Flower would send a traceback of pages."""
    try:
        return act(party(source, int(context.node_config["partition-id"])))
    except Exception as error:
        logging.getLogger(__name__).exception("party failed")
        return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


@lru_cache(maxsize=1)
def _worker(source: str) -> Callable[[int], VerticalClient]:
    """Records and device of one run in this process; parties are made of them on demand."""
    config = VerticalConfig.model_validate_json(source)
    device = device_of_worker()
    records = build_records(config)
    return lru_cache(maxsize=None)(lambda number: build_client(config, records, number, device))


def party(source: str, number: int) -> VerticalClient:
    """Returns passive party ``number`` of the run with the JSON configuration ``source``."""
    return _worker(source)(number)
