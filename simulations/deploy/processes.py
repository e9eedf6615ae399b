"""Flower's processes as children: started together, stopped together, never left behind."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from fedface.config import ConfigError

_COMMANDS = (
    "flwr-agentapp",
    "flwr-clientapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)
_WAIT_FOR_END = 15.0
_PR_SET_PDEATHSIG = 1


def run_together(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    """Runs ``commands`` until one of them ends or this process is told to stop.

    When one ends the others are stopped; when this process is killed, the system stops them.

    Args:
        commands: Name -> command line, in the order to start.
        environment: The whole environment of the children.
        say: Told what happens.

    Returns:
        0 after SIGTERM or SIGINT, else the exit code of the one that ended (1 where that is 0).
    """
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            children[name] = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        while not told:
            for name, child in children.items():
                if (code := child.poll()) is not None:
                    say(f"{name} ended with exit code {code}")
                    return code if code > 0 else 1
            time.sleep(0.2)
        return 0
    finally:
        _stop(list(children.values()))
        for number, handler in before.items():
            signal.signal(number, handler)


def flower_environment(folder: Path, variable: str, app: str) -> dict[str, str]:
    """Returns the environment for Flower's processes of the server or site in ``folder``.

    Flower finds its app processes by name on the PATH. The first folder there holds ours: ``app``
    runs this installed fedface whatever code a bundle carries, and the others refuse.

    Args:
        folder: The server's or the site's folder.
        variable: The environment variable that tells the app process about the folder.
        app: ``flwr-serverapp`` or ``flwr-clientapp``.
    """
    commands = folder.absolute() / "bin"
    commands.mkdir(mode=0o700, exist_ok=True)
    for name in _COMMANDS:
        act = f"run_{name.removeprefix('flwr-')}" if name == app else "refuse"
        path = commands / name
        partial = path.with_suffix(f".partial-{os.getpid()}")
        partial.write_text(
            f"#!{sys.executable}\nfrom simulations.deploy.app_process import {act}\n\n{act}()\n"
        )
        partial.chmod(0o700)
        os.replace(partial, path)
    programs = Path(sys.executable).parent
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FLWR_")
    }
    return environment | {
        variable: str(folder.absolute()),
        "PATH": f"{commands}:{programs}:{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(folder.absolute() / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONUNBUFFERED": "1",
    }


def program(name: str) -> str:
    """Returns the path of a program that was installed beside this Python.

    Raises:
        ConfigError: If it is not there.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigError(f"{name}: needed Flower's program, found none (pip install flwr)")
    return found


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks them to end, and ends those that do not."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + _WAIT_FOR_END
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _die_with_parent() -> None:
    """Linux ends this process when its parent is gone, kill -9 included."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
