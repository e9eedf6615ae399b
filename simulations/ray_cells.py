"""Where a grid's cells run: one Ray actor for each cell at work, used again and again."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from simulations.engine.workers import machines, prepare_environment, ray_arguments, slots
from simulations.grid import Workers

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Executor(Protocol):
    """Runs cells, some at a time."""

    @property
    def n_slots(self) -> int:
        """How many cells may be at work at a time."""
        ...

    def start(self, key: Path, source: str) -> None:
        """Begins the cell ``key`` whose run has the JSON configuration ``source``."""
        ...

    def wait(self) -> tuple[Path, str | None]:
        """Returns the next cell that has ended, and in one line why it failed if it did."""
        ...

    def close(self) -> None:
        """Ends all cells at work."""
        ...


class InThisProcess:
    """Runs one cell at a time in this very process, without Ray."""

    n_slots = 1

    def __init__(self, run: Callable[[str], None]) -> None:
        """Cells are run by ``run(source)``."""
        self._run = run
        self._waiting: list[tuple[Path, str]] = []

    def start(self, key: Path, source: str) -> None:
        """Remembers the cell; :meth:`wait` runs it."""
        self._waiting.append((key, source))

    def wait(self) -> tuple[Path, str | None]:
        """Runs the cell that was started first: see :class:`Executor`."""
        key, source = self._waiting.pop(0)
        return key, attempt(self._run, source)

    def close(self) -> None:
        """Does nothing: no cell is at work between calls."""


class CellWorker:
    """What a Ray actor holds: a process that runs one cell after the other."""

    def __init__(self, folder: str) -> None:
        """Works in ``folder``, where the comparison was started, with one thread."""
        import torch

        os.chdir(folder)
        torch.set_num_threads(1)

    def run(self, source: str) -> str | None:
        """Runs a cell; returns in one line why it failed, None if it did not."""
        from simulations.cell import run_cell

        return attempt(run_cell, source)


class RayCells:
    """Runs cells on Ray; a worker's death fails its cell alone."""

    def __init__(self, workers: Workers) -> None:
        """Starts Ray on this machine, or joins the cluster at ``workers.address``.

        Raises:
            ConfigError: If there are not the CPUs or GPUs for one cell.
        """
        environment = prepare_environment()
        import ray

        self._ray: Any = ray
        ray.init(**ray_arguments(workers.num_cpus, workers.address))
        try:
            self.n_slots, gpus = slots(
                workers.cpus, workers.gpus, machines(self._ray.nodes()), workers.max_parallel
            )
        except BaseException:
            ray.shutdown()
            raise
        self._actor: Any = self._ray.remote(CellWorker).options(
            num_cpus=workers.cpus, num_gpus=gpus, runtime_env={"env_vars": environment}
        )
        self._idle: list[Any] = []
        self._at_work: dict[Any, tuple[Path, Any]] = {}

    def start(self, key: Path, source: str) -> None:
        """Gives the cell to an idle worker, or to a new one: see :class:`Executor`."""
        worker = self._idle.pop() if self._idle else self._actor.remote(str(Path.cwd()))
        self._at_work[worker.run.remote(source)] = (key, worker)

    def wait(self) -> tuple[Path, str | None]:
        """Waits for a cell to end; a worker that died is not used again: see :class:`Executor`."""
        (ended, *_), _ = self._ray.wait(list(self._at_work), num_returns=1)
        key, worker = self._at_work.pop(ended)
        try:
            reason = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            cause = lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"
            return key, one_line(f"the worker's process died ({type(error).__name__}: {cause})")
        self._idle.append(worker)
        return key, reason

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        self._ray.shutdown()


def attempt(run: Callable[[str], None], source: str) -> str | None:
    """Returns in one line why ``run(source)`` failed, None if it did not."""
    try:
        run(source)
    except Exception as error:
        return one_line(f"{type(error).__name__}: {error}")
    return None


def one_line(text: str, limit: int = 500) -> str:
    """Returns ``text`` in one line of at most ``limit`` characters that steers no terminal."""
    words = _COLOUR.sub("", text).split()
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(words))
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
