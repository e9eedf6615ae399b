"""A small internet of network namespaces: a server, sites and a stranger, each on its own link."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FEDFACE = [str(Path(sys.executable).parent / "fedface")]
FLWR = [str(Path(sys.executable).parent / "flwr")]
SERVER_ADDRESS = "10.99.0.1"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class TimedOut(AssertionError):
    """What was waited for did not come about."""


def missing() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for name in ("ip", "nginx", "curl"):
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{name} is not installed"
    name = f"ff{os.getpid()}probe"
    if _run("ip", "netns", "add", name).returncode:
        return "network namespaces cannot be made"
    veth = _run("ip", "-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
    _run("ip", "netns", "del", name)
    return "veth pairs cannot be made" if veth.returncode else None


@dataclass
class Process:
    """One command in a namespace, its output in a file."""

    child: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> int:
        """Asks it to end and returns its exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        return self.child.wait(60)


@dataclass
class Network:
    """Namespaces by name; ``server`` has the address that all others reach."""

    folder: Path
    prefix: str
    processes: list[Process] = field(default_factory=list)

    def run(
        self, where: str, *command: str, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; output and errors together in ``stdout``."""
        return subprocess.run(
            ["ip", "netns", "exec", self.prefix + where, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            env={**os.environ, **_ENVIRONMENT, **environment},
            check=False,
        )

    def start(self, where: str, log: str, *command: str) -> Process:
        """Starts a command; ``log`` is appended to."""
        path = self.folder / log
        with path.open("ab") as stream:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.prefix + where, *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **_ENVIRONMENT},
            )
        process = Process(child, path)
        self.processes.append(process)
        return process

    def link(self, where: str, up: bool) -> None:
        """Plugs the cable of a namespace in or out."""
        state = "up" if up else "down"
        _must("ip", "-n", self.prefix + where, "link", "set", "uplink", state)
        if up:
            self._route(where)

    def add(self, where: str, number: int) -> None:
        """Adds a namespace that is wired to the server's and to nothing else."""
        name, near, far = self.prefix + where, f"{self.prefix}s{number}", f"{self.prefix}c{number}"
        _must("ip", "netns", "add", name)
        _must("ip", "-n", name, "link", "set", "lo", "up")
        if where == "server":
            _must("ip", "-n", name, "addr", "add", f"{SERVER_ADDRESS}/32", "dev", "lo")
            return
        _must("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        _must("ip", "link", "set", near, "netns", self.prefix + "server")
        _must("ip", "link", "set", far, "netns", name)
        _must("ip", "-n", name, "link", "set", far, "name", "uplink")
        server = self.prefix + "server"
        _must("ip", "-n", server, "addr", "add", f"10.99.{number}.1/30", "dev", near)
        _must("ip", "-n", server, "link", "set", near, "up")
        _must("ip", "-n", name, "addr", "add", f"10.99.{number}.2/30", "dev", "uplink")
        _must("ip", "-n", name, "link", "set", "uplink", "up")
        self._numbers[where] = number
        self._route(where)

    def __post_init__(self) -> None:
        """Knows no wires yet."""
        self._numbers: dict[str, int] = {}

    def _route(self, where: str) -> None:
        via = f"10.99.{self._numbers[where]}.1"
        _must("ip", "-n", self.prefix + where, "route", "replace", SERVER_ADDRESS, "via", via)


@contextmanager
def network(folder: Path, names: tuple[str, ...]) -> Iterator[Network]:
    """Makes the namespaces ``names``, the first is the server's; removes them in the end."""
    made = Network(folder, f"ff{os.getpid() % 10000}")
    try:
        for number, name in enumerate(names):
            made.add(name, number)
        yield made
    finally:
        for process in made.processes:
            if process.child.poll() is None:
                process.child.terminate()
        for process in made.processes:
            try:
                process.child.wait(60)
            except subprocess.TimeoutExpired:
                process.child.kill()
        for name in names:
            for pid in _run("ip", "netns", "pids", made.prefix + name).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", made.prefix + name)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Waits until ``condition`` is true.

    Raises:
        TimedOut: If it is not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what}: not within {seconds:g} s")
        time.sleep(0.3)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _must(*command: str) -> None:
    done = _run(*command)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
