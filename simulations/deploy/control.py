"""An operator's line to the server: Flower's Control API, over TLS with a client certificate.

``flwr run`` cannot present a certificate, so this drives the class behind it.
"""

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedface.config import ConfigError
from simulations.deploy.authority import require_in_date, require_private
from simulations.deploy.settings import OperatorSettings

if TYPE_CHECKING:
    from simulations.deploy.order import Order

T = TypeVar("T")

_RAISED = "ServerApp failed with exception: "
"""How Flower begins the details of a run that failed by itself."""


class ControlError(RuntimeError):
    """The server refused a call, or could not be reached."""


class Unreachable(ControlError):
    """Nobody answered: the server may be starting again."""


@dataclass(frozen=True)
class Node:
    """A site as the server knows it; ``status`` is registered, online, offline or unregistered."""

    node_id: int
    name: str
    status: str


@dataclass(frozen=True)
class RunStatus:
    """A run as the server knows it.

    Attributes:
        status: pending, starting, running or finished.
        outcome: completed, failed or stopped once it is finished, else empty.
        details: Why it failed.
        pending_at: When it was submitted (ISO 8601, UTC).
    """

    run_id: int
    status: str
    outcome: str
    details: str
    pending_at: str

    @property
    def why(self) -> str:
        """Why it failed, in the words of the run itself where it had any."""
        return self.details.removeprefix(_RAISED) or "no reason was given"

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status == "finished"


class Control:
    """The calls that fedface makes."""

    def __init__(self, client: ControlHttpClient) -> None:
        """Uses ``client`` for every call."""
        self.client = client

    def submit(self, order: "Order") -> int:
        """Starts a run and returns its number."""
        from simulations.deploy.order import bundle

        fab = bundle()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
            override_config=user_config_to_proto(dict(order.run_config())),
        )
        with _errors():
            reply = self.client.StartRun(request)
        if not reply.HasField("run_id"):
            raise ControlError("the server started no run and did not say why")
        return int(reply.run_id)

    def runs(self, limit: int = 10) -> list[RunStatus]:
        """Returns the latest runs, the newest first."""
        with _errors():
            reply = self.client.ListRuns(ListRunsRequest(limit=limit))
        found = [_status(run) for run in reply.run_dict.values()]
        return sorted(found, key=lambda run: run.pending_at, reverse=True)

    def run(self, run_id: int) -> RunStatus:
        """Returns how the run with this number stands."""
        with _errors():
            reply = self.client.ListRuns(ListRunsRequest(run_id=run_id))
        return _status(reply.run_dict[run_id])

    def stop(self, run_id: int) -> None:
        """Stops a run; its folder keeps the last completed round."""
        with _errors():
            self.client.StopRun(StopRunRequest(run_id=run_id))

    def nodes(self) -> list[Node]:
        """Returns the admitted sites, by name."""
        with _errors():
            reply = self.client.ListNodes(ListNodesRequest())
        found = [Node(n.node_id, n.name, n.status) for n in reply.nodes_info]
        return sorted((n for n in found if n.status != "unregistered"), key=lambda n: n.name)

    def admit(self, name: str, key: bytes) -> int:
        """Admits the site ``name`` with the public ``key`` (PEM); returns Flower's number for it.

        Raises:
            ControlError: If there is a site of this name, or one with this key.
        """
        if any(node.name == name for node in self.nodes()):
            raise ControlError(
                f"site {name}: needed a new name, found one admitted (expel it first)"
            )
        with _errors():
            reply = self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
        return int(reply.node_id)

    def expel(self, name: str) -> None:
        """Takes the admission of the site ``name`` away.

        Raises:
            ControlError: If there is no such site.
        """
        ids = [node.node_id for node in self.nodes() if node.name == name]
        if not ids:
            raise ControlError(f"site {name}: needed an admitted site, found none")
        for node_id in ids:
            with _errors():
                self.client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def log(self, run_id: int, after: float) -> Iterator[tuple[str, float]]:
        """Yields what the run says, with its time, until it is finished or the line breaks."""
        with _errors():
            request = StreamLogsRequest(run_id=run_id, after_timestamp=after)
            for part in self.client.StreamLogs(request):
                yield part.log_output, part.latest_timestamp


@contextmanager
def connected(settings: OperatorSettings) -> Iterator[Control]:
    """Opens an operator's line to the server.

    Raises:
        ConfigError: If the operator's files cannot be used.
    """
    require_private(settings.key)
    require_in_date(settings.certificate, "fedface federation operator writes a new operator's")
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"operator.toml: needed usable certificates, found: {error}") from None
    client = ControlHttpClient(
        f"https://{settings.server}",
        verify=context,
        interceptors=[
            CliClientHttpInterceptor(),
            RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
        ],
    )
    try:
        yield Control(client)
    finally:
        client.close()


def follow(
    control: Control,
    order: "Order",
    restarts: int,
    say: Callable[[str], None],
    patience: float = 300,
) -> RunStatus:
    """Submits ``order``, shows what it says and returns how it ended.

    A run that was killed with its server, and did not fail by itself, is submitted again to
    continue after its last completed round.

    Args:
        control: The line to the server.
        order: The run.
        restarts: How often a killed run is submitted again.
        say: Told each line.
        patience: Seconds that the server may be away.

    Raises:
        ControlError: If the server refuses the run, or stays away.
    """
    for left in reversed(range(restarts + 1)):
        run_id = _patiently(partial(control.submit, order), patience, say)
        say(f"run {run_id}: submitted {order.config.name}")
        status = _until_finished(control, run_id, say, patience)
        if not left or status.outcome != "failed" or _RAISED in status.details:
            break
        order = replace(order, resume=True)
        say(f"run {run_id} was killed ({status.details}); continuing after its last round")
    return status


def _until_finished(
    control: Control, run_id: int, say: Callable[[str], None], patience: float
) -> RunStatus:
    after = 0.0
    while True:
        try:
            for text, seen in control.log(run_id, after):
                after = seen
                for line in text.splitlines():
                    if line.strip():
                        say(line)
        except ControlError:
            pass  # the line broke; the status tells what became of the run
        status = _patiently(lambda: control.run(run_id), patience, say)
        if status.finished:
            return status
        time.sleep(2)


def _patiently(call: Callable[[], T], patience: float, say: Callable[[str], None]) -> T:
    """The result of ``call``, once the server answers."""
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            return call()
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"{error}; trying again for {patience:g} s")
                told = True
            time.sleep(3)


@contextmanager
def _errors() -> Iterator[None]:
    """Turns what can go wrong in a call into one line."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        text = _detail(error.response)
        kind = Unreachable if error.response.status_code in (502, 503, 504) else ControlError
        raise kind(f"the server refused ({error.response.status_code}): {text}") from None
    except httpx.TransportError as error:
        if isinstance(error.__cause__, ssl.SSLError) or "certificate" in str(error).lower():
            raise ControlError(f"the server's or our certificate was refused: {error}") from None
        raise Unreachable(f"the server does not answer: {error or type(error).__name__}") from None


def _detail(response: httpx.Response) -> str:
    try:
        content = json.loads(response.text)
    except ValueError:
        return response.reason_phrase
    if isinstance(content, dict):
        found = content.get("detail") or content.get("message") or content
        return str(found)
    return str(content)


def _status(run: Any) -> RunStatus:
    return RunStatus(
        run.run_id, run.status.status, run.status.sub_status, run.status.details, run.pending_at
    )
