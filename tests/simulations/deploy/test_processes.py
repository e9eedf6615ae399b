"""Children that live and die together, and commands that Flower finds in place of its own."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from fedface.config import ConfigError
from simulations.deploy.processes import _COMMANDS, flower_environment, program, run_together

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def exits(code: int) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.exit({code})"]


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (0, 1)])
def test_when_one_ends_all_end(code: int, expected: int) -> None:
    said: list[str] = []
    started = time.monotonic()
    commands = {"long": SLEEP, "short": exits(code)}
    assert run_together(commands, os.environ, said.append) == expected
    assert said == [f"short ended with exit code {code}"]
    assert time.monotonic() - started < 30


def test_a_program_that_cannot_start_stops_the_others() -> None:
    with pytest.raises(OSError, match="no such program"):
        run_together({"long": SLEEP, "none": ["/no such program"]}, os.environ, print)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends orphans")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import os, sys; from simulations.deploy.processes import run_together\n"
        f"sys.exit(run_together({{'child': [sys.executable, '-c', {child!r}]}}, os.environ, print))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(pid_file.read_text())
    process.send_signal(number)
    assert process.wait(60) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_flower_finds_our_programs_before_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    environment = flower_environment(tmp_path, "FEDFACE_SITE", "flwr-clientapp")
    first = Path(environment["PATH"].split(":")[0])
    assert sorted(path.name for path in first.iterdir()) == sorted(_COMMANDS)
    assert "run_clientapp()" in (first / "flwr-clientapp").read_text()
    others = [first / name for name in _COMMANDS if name != "flwr-clientapp"]
    assert all("refuse()" in path.read_text() for path in others)
    assert environment["FLWR_HOME"] == str(tmp_path / "flower")
    assert environment["FEDFACE_SITE"] == str(tmp_path)


def test_every_kind_of_work_that_flower_knows_has_a_program_here() -> None:
    assert set(_COMMANDS) == set(TASK_TYPE_TO_COMMAND.values())


def test_a_kind_of_work_that_we_do_not_have_is_refused(tmp_path: Path) -> None:
    flower_environment(tmp_path, "FEDFACE_SITE", "flwr-clientapp")
    done = subprocess.run(
        [tmp_path / "bin" / "flwr-agentapp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "refused to run an app of a kind" in done.stderr


def test_flower_has_the_names_that_are_replaced() -> None:
    client = import_module("flwr.supernode.runtime.run_clientapp")
    server = import_module("flwr.superlink.runtime.run_serverapp")
    assert callable(client.install_from_fab)
    assert callable(client.get_load_client_app_fn)
    assert callable(server.run_)


def test_a_missing_program_is_named() -> None:
    assert Path(program("flower-superlink")).is_file()
    with pytest.raises(ConfigError, match="flower-nothing: needed Flower's program"):
        program("flower-nothing")
