"""Flower's own simulation engine: one Ray actor per worker runs the ClientApp.

Ray and Flower are imported only when a run starts: they take seconds and write logs.
"""

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from fedface.config import Config
from simulations.engine.workers import ENVIRONMENT, ClientResources, EngineFailed

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

_DEAD = (
    "ActorDiedError",
    "RayActorError",
    "ActorUnavailableError",
    "WorkerCrashedError",
    "OutOfMemoryError",
)


class FlowerEngine(Config):
    """Flower's simulation on Ray, in this process."""

    name: Literal["flower"] = "flower"
    client_resources: ClientResources = ClientResources()
    num_cpus: PositiveInt | None = None
    """CPUs that Ray may use; clients at work = num_cpus / client_resources.num_cpus."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that Ray may use; null takes what the machine has."""
    max_restarts: NonNegativeInt = 2
    """How often a run starts its workers anew after one was killed (out of memory, kill -9)."""

    @model_validator(mode="after")
    def _one_client_fits(self) -> Self:
        for name in ("num_cpus", "num_gpus"):
            needed, found = getattr(self.client_resources, name), getattr(self, name)
            if None not in (needed, found) and found < needed:
                raise ValueError(f"{name} needs >= client_resources.{name}={needed}, got {found}")
        return self

    def ready(self) -> AbstractContextManager[None]:
        """Does nothing: Flower starts Ray for each run."""
        return nullcontext()

    @property
    def server_threads(self) -> int:
        """As many as there are CPUs: the workers rest while the server aggregates."""
        return self.num_cpus or os.cpu_count() or 1

    def run(
        self, server: Callable[["Grid"], None], client_app: "ClientApp", n_clients: int
    ) -> None:
        """Runs ``server(grid)`` against ``n_clients`` simulated clients.

        Raises:
            Exception: Whatever ``server`` raised, unchanged.
            ValueError: If clients ask for a GPU and there is none.
            EngineFailed: If Flower or Ray broke down before ``server`` came to its end.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        python_path = os.environ.get("PYTHONPATH")
        import torch

        resources: dict[str, Any] = self.shares(torch.cuda.device_count())
        from flwr.app import Context
        from flwr.serverapp import Grid, ServerApp
        from flwr.simulation import run_simulation

        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        failures: list[BaseException] = []
        finished: list[bool] = []
        stopped = Event()
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                server(cast(Grid, _UntilStopped(grid, stopped)))
                finished.append(True)
            except BaseException as error:
                failures.append(error)

        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
        try:
            run_simulation(
                server_app,
                client_app,
                num_supernodes=n_clients,
                backend_config={
                    "init_args": self._init_args(),
                    "client_resources": resources,
                },
            )
        except Exception as error:
            if _interrupted(error):  # Ray's end may fail while an interrupt is on its way
                raise KeyboardInterrupt from None
            if not failures:
                raise EngineFailed(f"Flower's simulation broke down: {_cause(error)}") from error
        finally:
            stopped.set()
            _restore("PYTHONPATH", python_path)  # Flower puts all of sys.path into it
        if failures:
            raise failures[0]
        if not finished:
            raise EngineFailed("Flower's simulation ended before the server did")

    def lost_worker(self, failure: str) -> bool:
        """Returns whether a client failed because its worker's process is gone.

        Flower 1.41 puts a dead actor back into its pool, where it fails every later client.
        """
        return any(f"<class 'ray.exceptions.{name}'>" in failure for name in _DEAD)

    def shares(self, n_gpus_found: int) -> dict[str, float]:
        """Returns the CPUs and the share of a GPU that each client gets.

        Args:
            n_gpus_found: GPUs of this machine; ``num_gpus`` overrules it.

        Raises:
            ValueError: If clients ask for a GPU and there is none.
        """
        n_gpus = n_gpus_found if self.num_gpus is None else self.num_gpus
        share, num_cpus = self.client_resources.num_gpus, self.client_resources.num_cpus
        if share is None:
            n_workers = max((self.num_cpus or os.cpu_count() or 1) // num_cpus, 1)
            share = min(1.0, n_gpus / n_workers)
        if share > 0 and n_gpus == 0:
            raise ValueError(
                f"engine.client_resources.num_gpus={share} needs a GPU, found none (0 trains on "
                "the CPU)"
            )
        return {"num_cpus": num_cpus, "num_gpus": share}

    def _init_args(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if self.num_cpus is not None:
            arguments["num_cpus"] = self.num_cpus
        if self.num_gpus is not None:
            arguments["num_gpus"] = self.num_gpus
        return arguments


class _UntilStopped:
    """Flower's grid while the simulation runs; afterwards any use of it raises.

    The server has a thread of its own, which else would wait for replies that nobody sends and
    keep the process alive, when the simulation was interrupted or broke down.
    """

    def __init__(self, grid: "Grid", stopped: Event) -> None:
        self._grid = grid
        self._stopped = stopped

    def __getattr__(self, name: str) -> Any:
        if self._stopped.is_set():
            raise EngineFailed("Flower's simulation has stopped")
        return getattr(self._grid, name)


def _interrupted(error: BaseException | None) -> bool:
    """Whether ``error`` came up while a KeyboardInterrupt was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _cause(error: BaseException) -> str:
    """The first error of a chain, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _restore(name: str, value: str | None) -> None:
    """Sets the environment variable ``name`` back to ``value``."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
