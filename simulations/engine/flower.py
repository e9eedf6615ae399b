"""Flower's own simulation engine: one Ray actor per worker runs the ClientApp.

Ray and Flower are imported only when a run starts: they take seconds and write logs.
"""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from fedface.config import Config

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    # glibc gives freed activations back to the kernel at each step; the page faults cost small
    # nets up to 1.7 times.
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
}


class ClientResources(Config):
    """What one client takes while it trains."""

    num_cpus: PositiveInt = 1
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of one GPU; Ray throttles by it, it does not cap memory."""


class FlowerEngine(Config):
    """Flower's simulation on Ray, in this process."""

    name: Literal["flower"] = "flower"
    client_resources: ClientResources = ClientResources()
    num_cpus: PositiveInt | None = None
    """CPUs that Ray may use; clients at work = num_cpus / client_resources.num_cpus."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that Ray may use; null takes what the machine has."""

    def run(
        self, server: Callable[["Grid"], None], client_app: "ClientApp", n_clients: int
    ) -> None:
        """Runs ``server(grid)`` against ``n_clients`` simulated clients.

        Raises:
            Exception: Whatever ``server`` raised, unchanged.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from flwr.app import Context
        from flwr.serverapp import Grid, ServerApp
        from flwr.simulation import run_simulation

        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        failures: list[BaseException] = []
        finished: list[bool] = []
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                server(grid)
                finished.append(True)
            except BaseException as error:
                failures.append(error)

        run_simulation(
            server_app,
            client_app,
            num_supernodes=n_clients,
            backend_config={
                "init_args": self._init_args(),
                "client_resources": self.client_resources.model_dump(),
            },
        )
        if failures:
            raise failures[0]
        if not finished:
            raise RuntimeError("Flower's simulation ended before the server did")

    def _init_args(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if self.num_cpus is not None:
            arguments["num_cpus"] = self.num_cpus
        if self.num_gpus is not None:
            arguments["num_gpus"] = self.num_gpus
        return arguments
