"""What Flower starts for one task: the installed fedface, never the code that came in a bundle.

A SuperNode of Flower 1.41 unpacks the bundle (FAB) of a run and imports its code. Here the bundle
is only looked at: its hash goes to the site's policy. Flower 1.41 has no option for that, so two
names of its process modules are replaced; ``tests/simulations/deploy`` notices if they move.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn


def run_clientapp() -> None:
    """Answers one message at a site: the entry of ``bin/flwr-clientapp``."""
    from flwr.clientapp import ClientApp
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    process = import_module("flwr.supernode.runtime.run_clientapp")

    def load(fab_id: str, fab_version: str, fab_hash: str) -> ClientApp:
        from simulations.deploy.site_app import site_app

        return site_app(fab_hash)

    def loader(*arguments: object, **options: object) -> object:
        return load

    _replace(process, "install_from_fab", _unpack_nothing)
    _replace(process, "get_load_client_app_fn", loader)
    flwr_clientapp()


def run_serverapp() -> None:
    """Runs one run at the server: the entry of ``bin/flwr-serverapp``."""
    from flwr.app import Context
    from flwr.serverapp import Grid
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

    process = import_module("flwr.superlink.runtime.run_serverapp")
    _write_to(Path(os.environ["FEDFACE_SERVER"]) / "log")

    def run(grid: Grid, context: Context, **options: object) -> Context:
        from simulations.deploy.server_app import app

        app(grid=grid, context=context)
        return context

    _replace(process, "run_", run)
    flwr_serverapp()


def refuse() -> NoReturn:
    """Ends: a federation of fedface has no work of this kind."""
    sys.exit("fedface: refused to run an app of a kind that this federation does not have")


def _unpack_nothing(*arguments: object, **options: object) -> None:
    """Takes the place of unpacking a bundle."""


def _write_to(folder: Path) -> None:
    """Sends output into ``serverapp.log``: Flower throws a ServerApp's away."""
    folder.mkdir(mode=0o700, exist_ok=True)
    log = os.open(folder / "serverapp.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _replace(module: ModuleType, name: str, value: object) -> None:
    """Sets ``module.name``, which has to be there.

    Raises:
        RuntimeError: If Flower has no such name: then its own would be used, unnoticed.
    """
    if not hasattr(module, name):
        raise RuntimeError(f"{module.__name__}: needed the name {name} of Flower 1.41, found none")
    setattr(module, name, value)
