"""An engine without workers: each client runs in this very process, one after the other.

It needs no Ray and copies nothing, so it suits small models, and many runs side by side of which
each has a process of its own (``fedface compare``). It gives the numbers of the other engines.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from fedface.config import Config

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid


class InProcessEngine(Config):
    """Runs every client in the server's process."""

    name: Literal["in_process"] = "in_process"

    def ready(self) -> AbstractContextManager[None]:
        """Does nothing: there is nothing to start."""
        return nullcontext()

    @property
    def server_threads(self) -> int:
        """One: runs of this engine stand side by side."""
        return 1

    @property
    def max_restarts(self) -> int:
        """How often workers are started anew: never, there are none."""
        return 0

    def lost_worker(self, why: str) -> bool:
        """Returns whether a worker died: never, a client that dies takes the run with it."""
        return False

    def run(
        self, server: Callable[["Grid"], None], client_app: "ClientApp", n_clients: int
    ) -> None:
        """Runs ``server(grid)`` against ``n_clients`` clients of ``client_app``.

        Raises:
            Exception: Whatever ``server`` raised, unchanged.
        """
        from simulations.engine.in_process_grid import InProcessGrid

        server(InProcessGrid(client_app, n_clients))
