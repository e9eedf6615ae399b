"""The resident engine: long-lived Ray workers that keep model, data and weights between messages.

Flower's own engine copies the weights 10 to 25 times per message and looks for news every tenth of
a second. Here global weights go through Ray's object store once per round, an update is written
once, into the matrix that the server aggregates, and replies are waited for.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from fedface.config import Config
from simulations.engine.workers import (
    ClientResources,
    machines,
    prepare_environment,
    ray_arguments,
    slots,
)

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

_inherited: dict[str, str] = {}
"""The environment that this process started Ray with, while it runs: its workers have it already.
One that they would have to be given starts them anew, and an agent of Ray's beside them."""

_FIELDS = ("engine.client_resources.num_cpus", "engine.client_resources.num_gpus")


class ResidentEngine(Config):
    """Long-lived Ray workers, on this machine or on a cluster."""

    name: Literal["resident"] = "resident"
    client_resources: ClientResources = ClientResources()
    num_cpus: PositiveInt | None = None
    """CPUs that Ray may use on this machine; workers = num_cpus / client_resources.num_cpus."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that Ray may use on this machine; null takes what there is."""
    max_workers: PositiveInt | None = None
    """Workers at most; null starts as many as CPUs and GPUs allow."""
    address: str | None = None
    """A Ray cluster to join (``auto`` or ``host:port``) whose nodes share the run folder; null
    starts Ray on this machine."""
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = 1 << 30
    """The most that broadcasts may take on this machine: four bytes a parameter, twice, and a
    reserve; taken only when used. With an address the cluster decides."""

    @model_validator(mode="after")
    def _one_client_fits(self) -> Self:
        for name in ("num_cpus", "num_gpus"):
            needed, found = getattr(self.client_resources, name), getattr(self, name)
            if None not in (needed, found) and found < needed:
                raise ValueError(f"{name} needs >= client_resources.{name}={needed}, got {found}")
            if self.address is not None and found is not None:
                raise ValueError(f"{name} needs to be null with an address, got {found}")
        return self

    @property
    def server_threads(self) -> int:
        """As many as there are CPUs: the workers rest while the server aggregates."""
        return self.num_cpus or os.cpu_count() or 1

    @property
    def max_restarts(self) -> int:
        """How often a run starts all workers anew: never, a dead one is replaced by itself."""
        return 0

    def lost_worker(self, why: str) -> bool:
        """Returns whether the run has to start anew for a lost worker: never."""
        return False

    def run(
        self, server: Callable[["Grid"], None], client_app: "ClientApp", n_clients: int
    ) -> None:
        """Runs ``server(grid)`` against ``n_clients`` simulated clients.

        Raises:
            Exception: Whatever ``server`` raised, unchanged.
            ConfigError: If there are not the CPUs or GPUs for one worker.
            EngineFailed: If workers die faster than they can be replaced.
        """
        with self.ready():
            self._run(import_module("ray"), server, client_app, n_clients)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Keeps Ray running inside: several runs need not start it anew each."""
        environment = prepare_environment()
        ray: Any = import_module("ray")
        if ray.is_initialized():
            yield
            return
        ray.init(**self._init_arguments())
        if self.address is None:
            _inherited.update(environment)
        try:
            yield
        finally:
            _inherited.clear()
            ray.shutdown()

    def _run(
        self,
        ray: Any,
        server: Callable[["Grid"], None],
        client_app: "ClientApp",
        n_clients: int,
    ) -> None:
        from simulations.engine.resident_grid import ResidentGrid
        from simulations.engine.resident_worker import ClientWorker

        resources = self.client_resources
        n_workers, gpus = slots(
            resources.num_cpus,
            resources.num_gpus,
            machines(ray.nodes()),
            self.max_workers,
            _FIELDS,
        )
        options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": gpus}
        if (environment := prepare_environment()) != _inherited:
            options["runtime_env"] = {"env_vars": environment}
        actor = ray.remote(ClientWorker).options(**options)
        app, folder = ray.put(client_app), str(Path.cwd())
        n_workers = min(n_workers, n_clients)
        grid = ResidentGrid(ray, lambda: actor.remote(app, folder), n_workers, n_clients)
        try:
            server(grid)
        finally:
            grid.close()

    def _init_arguments(self) -> dict[str, Any]:
        arguments = ray_arguments(self.num_cpus, self.address)
        if self.address is None:
            arguments["object_store_memory"] = self.object_store_bytes
            if self.num_gpus is not None:
                arguments["num_gpus"] = self.num_gpus
        return arguments
