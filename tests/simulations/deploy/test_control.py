"""An operator's line: what is submitted again, what is given up, what is said of a refusal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedface.config import ConfigError
from simulations.deploy import authority, control, found
from simulations.deploy.control import ControlError, RunStatus, Unreachable, follow
from simulations.deploy.order import Order
from simulations.deploy.settings import OperatorFolder
from tests.simulations.deploy.test_order import deployed

RAISED = "ServerApp failed with exception: "


class Server:
    """A server whose runs end as they are told to."""

    def __init__(self, *ends: tuple[str, str], breaks: int = 0) -> None:
        self.ends = ends
        self.breaks = breaks
        self.orders: list[Order] = []

    def submit(self, order: Order) -> int:
        self.orders.append(order)
        return len(self.orders)

    def run(self, run_id: int) -> RunStatus:
        if self.breaks:
            self.breaks -= 1
            raise Unreachable("the server does not answer")
        return RunStatus(run_id, "finished", *self.ends[run_id - 1], "")

    def log(self, run_id: int, after: float) -> Iterator[tuple[str, float]]:
        yield f"round of {run_id}\n\n", after + 1
        if self.breaks:
            raise Unreachable("the line broke")


def followed(server: Server, tmp_path: Path, restarts: int = 3) -> tuple[RunStatus, list[str]]:
    said: list[str] = []
    order = Order(deployed(tmp_path))
    return follow(server, order, restarts, said.append), said  # type: ignore[arg-type]


def test_a_complete_run_is_submitted_once(tmp_path: Path) -> None:
    server = Server(("completed", ""))
    status, said = followed(server, tmp_path)
    assert status.outcome == "completed"
    assert len(server.orders) == 1
    assert "round of 1" in said
    assert "" not in said


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    server = Server(("failed", "no heartbeat"), ("failed", "no heartbeat"), ("completed", ""))
    status, said = followed(server, tmp_path)
    assert status.outcome == "completed"
    assert [order.resume for order in server.orders] == [False, True, True]
    assert sum("continuing after its last round" in line for line in said) == 2


def test_it_is_not_continued_for_ever(tmp_path: Path) -> None:
    server = Server(*[("failed", "no heartbeat")] * 9)
    status, _ = followed(server, tmp_path, restarts=2)
    assert status.outcome == "failed"
    assert len(server.orders) == 3


@pytest.mark.parametrize("end", [("failed", RAISED + "3 rounds in a row"), ("stopped", "")])
def test_a_run_that_failed_by_itself_is_not_tried_again(
    tmp_path: Path, end: tuple[str, str]
) -> None:
    server = Server(end)
    status, _ = followed(server, tmp_path)
    assert status.outcome == end[0]
    assert len(server.orders) == 1
    assert status.why in ("3 rounds in a row", "no reason was given")


def test_a_server_that_starts_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.time, "sleep", lambda _: None)
    server = Server(("completed", ""), breaks=3)
    status, said = followed(server, tmp_path)
    assert status.outcome == "completed"
    assert sum("trying again" in line for line in said) == 1


def test_a_server_that_stays_away_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.time, "sleep", lambda _: None)
    server = Server(("completed", ""), breaks=10**9)
    with pytest.raises(Unreachable):
        follow(server, Order(deployed(tmp_path)), 0, print, patience=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (403, {"detail": "control calls need"}, ControlError, "refused .403.: control calls need"),
        (502, "<html>", Unreachable, "refused .502.: Bad Gateway"),
        (409, {"message": "in use"}, ControlError, "in use"),
    ],
)
def test_a_refusal_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: Any,
    kind: type[ControlError],
    message: str,
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    answers = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
    with pytest.raises(kind, match=message) as error, operators_line(tmp_path, answers) as line:
        line.nodes()
    assert "\n" not in str(error.value)


def test_nobody_at_home_is_no_refusal(tmp_path: Path) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with (
        pytest.raises(Unreachable, match="does not answer: connection refused"),
        operators_line(tmp_path, httpx.MockTransport(away)) as line,
    ):
        line.nodes()


def operators_line(tmp_path: Path, answers: httpx.MockTransport) -> Any:
    """A line whose other end is ``answers``."""
    from contextlib import contextmanager

    found.found(tmp_path / "fed", "demo", ("localhost",), "127.0.0.1", 8443, 9443)

    @contextmanager
    def line() -> Iterator[control.Control]:
        with control.connected(OperatorFolder(tmp_path / "fed" / "operator").settings) as made:
            made.client._client = httpx.Client(transport=answers)
            yield made

    return line()


def test_an_operators_key_has_to_be_private(tmp_path: Path) -> None:
    found.found(tmp_path / "fed", "demo", ("localhost",), "127.0.0.1", 8443, 9443)
    (tmp_path / "fed" / "operator" / "admin.key").chmod(0o644)
    settings = OperatorFolder(tmp_path / "fed" / "operator").settings
    with pytest.raises(ConfigError, match="needed mode 600"), control.connected(settings):
        pass


def test_an_operator_whose_time_is_over_is_told_so(tmp_path: Path) -> None:
    found.found(tmp_path / "fed", "demo", ("localhost",), "127.0.0.1", 8443, 9443)
    folder = tmp_path / "fed" / "operator"
    for path in folder.glob("admin.*"):
        path.unlink()
    authority.certify(tmp_path / "fed" / "authority", folder, "admin", "operator", days=0)
    settings = OperatorFolder(folder).settings
    with (
        pytest.raises(ConfigError, match=r"admin\.crt: needed .* valid now.*federation operator"),
        control.connected(settings),
    ):
        pass
