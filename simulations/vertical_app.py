"""The ClientApp of a vertical run: the same for every engine."""

import logging
from collections.abc import Callable
from functools import cache, lru_cache

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.vertical import VerticalClient
from clients.vertical_active import ActiveClient
from simulations.build import device_of_worker
from simulations.vertical_active import build_active_client
from simulations.vertical_build import build_client, build_records
from simulations.vertical_schema import VerticalConfig

Party = VerticalClient | ActiveClient
Act = Callable[[Message, Context], Message]

_PASSIVE: dict[str, Callable[[VerticalClient], Act]] = {
    "query.align": lambda party: party.align,
    "train.embed": lambda party: party.train,
    "train.backward": lambda party: party.train,
    "train.save": lambda party: party.save,
    "evaluate.embed": lambda party: party.evaluate,
}
_ACTIVE: dict[str, Callable[[ActiveClient], Act]] = {
    "query.align": lambda party: party.align,
    "train.start": lambda party: party.start,
    "train.steps": lambda party: party.steps,
    "train.alone": lambda party: party.alone,
    "train.keep": lambda party: party.keep,
    "train.save": lambda party: party.save,
    "evaluate.measure": lambda party: party.measure,
}
"""What each kind of party does with each type of message."""

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

    def answer(message: Message, context: Context) -> Message:
        return _answer(source, message, context)

    for kind in sorted({*_PASSIVE, *_ACTIVE}):
        category, _, action = kind.partition(".")
        register = {"query": app.query, "train": app.train, "evaluate": app.evaluate}[category]
        register(action)(answer)
    return app


def _answer(source: str, message: Message, context: Context) -> Message:
    """The party's reply, or why it failed in one line; Flower would send a traceback of pages."""
    try:
        found = party(source, int(context.node_config["partition-id"]))
        return _act(found, str(message.metadata.message_type))(message, context)
    except Exception as error:
        logging.getLogger(__name__).exception("party failed")
        return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


def _act(party: Party, kind: str) -> Act:
    """What ``party`` does with messages of this type; the other kind of party's are refused."""
    if isinstance(party, ActiveClient):
        if kind in _ACTIVE:
            return _ACTIVE[kind](party)
    elif kind in _PASSIVE:
        return _PASSIVE[kind](party)
    name = "active" if isinstance(party, ActiveClient) else party.name
    raise ValueError(f"party {name} needs messages for its own kind of party, got {kind}")


@lru_cache(maxsize=1)
def _worker(source: str) -> Callable[[int], Party]:
    """Records and device of one run in this process; parties are made of them on demand."""
    config = VerticalConfig.model_validate_json(source)
    device = device_of_worker()
    records = build_records(config)

    @cache
    def made(number: int) -> Party:
        if config.active.at == "client" and number == len(config.parties.passive):
            return build_active_client(config, records, device)
        return build_client(config, records, number, device)

    return made


def party(source: str, number: int) -> Party:
    """Returns party ``number`` of the run with the JSON configuration ``source``.

    The passive parties come first; the active one, where it is a client, is the one after them.
    """
    return _worker(source)(number)
