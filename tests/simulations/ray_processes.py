"""Finds the processes that a run started, its Ray included, by a mark in their environment."""

import os
import signal
from pathlib import Path
from time import monotonic, sleep

MARK = "FEDFACE_TEST_MARK"


def marked(mark: str) -> list[int]:
    """The ids of all living processes with ``mark`` in their first environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in own and state != "Z":
            found.append(int(folder.name))
    return found


def left_after(mark: str, seconds: float) -> list[str]:
    """What is still alive ``seconds`` later, at the latest; empty as soon as nothing is."""
    deadline = monotonic() + seconds
    while (alive := marked(mark)) and monotonic() < deadline:
        sleep(0.1)
    return [(Path("/proc") / str(i) / "cmdline").read_text().replace("\0", " ") for i in alive]


def kill_all(mark: str) -> None:
    """SIGKILL to every process with ``mark``."""
    for process in marked(mark):
        os.kill(process, signal.SIGKILL)
