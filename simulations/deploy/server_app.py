"""The ServerApp of real sites: the same server loop as in simulation, over Flower's own grid."""

import sys
from contextlib import ExitStack
from time import monotonic, sleep
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedface.config import ConfigError
from fedface.data.split import split_by_identity
from fedface.random import numpy_stream
from fedface.report.completion import complete_if_needed, complete_run
from fedface.report.html import write_report
from fedface.report.run_folder import RunFolder, RunFolderError
from simulations.build import RunData, check_fit, device_of_worker
from simulations.deploy.grid import SitesGrid
from simulations.deploy.order import Order, read_order
from simulations.deploy.settings import SERVER, ServerFolder, from_environment
from simulations.display import Display
from simulations.engine import InProcessEngine
from simulations.environment import describe_environment
from simulations.results import summarise
from simulations.schema import RunConfig
from simulations.server import RunFailed, Server

PATIENCE = 60.0
"""Seconds that a run waits for an earlier one to leave its folder."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Does the run that an operator submitted; whatever it raises is the run's status."""
    order = read_order(context)
    serve(grid, order, ServerFolder(from_environment(SERVER)))


def serve(grid: Grid, order: Order, folder: ServerFolder) -> None:
    """Does the rounds that are left of ``order``, and writes down what came out.

    Args:
        grid: Flower's grid.
        order: The run; its output folder and engine are not asked.
        folder: The server's folder; run folders lie in ``runs``.

    Raises:
        ConfigError: If the run cannot be done on the server's own faces.
        RunFolderError: If the run folder is in the way, is at work or belongs to another run.
        RunFailed: If too many rounds in a row had too few valid replies.
    """
    torch.set_num_threads(1)
    config = order.config.model_copy(update={"output": folder.runs, "engine": InProcessEngine()})
    run_folder = RunFolder(config.folder)
    folder.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        _enter(stack, run_folder)
        _serve(grid, config, order, run_folder)


def _enter(stack: ExitStack, folder: RunFolder) -> None:
    """Keeps others out of ``folder``; a ServerApp that was told to end gets the time to do so."""
    deadline = monotonic() + PATIENCE
    while True:
        try:
            stack.enter_context(folder.alone())
            return
        except RunFolderError:
            if monotonic() > deadline:
                raise
        sleep(1)


def _serve(grid: Grid, config: RunConfig, order: Order, folder: RunFolder) -> None:
    if order.resume and folder.exists():
        _require_same(folder, config)
        if folder.result() is not None:
            complete_if_needed(folder.path)
            return
    try:
        data = evaluation_data(config)
        check_fit(config, data)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if not (order.resume and folder.exists()):
        RunFolder.create(folder.path, config.to_yaml_dict(), describe_environment())
    _federate(grid, config, order, data, folder)
    result = summarise(config, folder) | {
        "malicious_clients": [],
        "sites": list(order.deployment.sites),
    }
    if len(result["rounds_kept_global"]) == config.federation.n_rounds:
        raise RunFailed(f"{config.name}: no round had {_quorum(config)} and changed the model")
    folder.write_result(result)
    complete_run(folder.path)
    write_report(folder.path)


def _quorum(config: RunConfig) -> str:
    return f"{config.federation.min_valid_replies} valid replies"


def _federate(
    grid: Grid, config: RunConfig, order: Order, data: RunData, folder: RunFolder
) -> None:
    federation = config.federation
    console = Console(file=sys.stdout, force_terminal=False, width=200)

    def say(text: str) -> None:
        console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    sites = SitesGrid(grid, order.deployment, federation.timeout, say)
    n_cohort = federation.clients_per_round or federation.n_clients
    with Display(console, config.name, federation.n_rounds, n_cohort) as display:
        server = Server(config, data, folder, display, device_of_worker())
        if server.completed:
            say(f"continued after round {server.completed}")
        if server.completed < federation.n_rounds:
            server(sites)


def evaluation_data(config: RunConfig) -> RunData:
    """Loads the server's own faces, on which every round is measured; nobody trains on them.

    They are split as in simulation, so that calibration and test people are the same ones there.

    Raises:
        ValueError: If files are missing or there are too few people.
    """
    faces = config.data.faces.load()
    split = split_by_identity(faces, config.data.split, numpy_stream(config.seed, "split"))
    pairs = None
    if config.data.pairs is not None:
        pairs = config.data.pairs.load()
        if pairs.people is not None:
            pairs = pairs.without(set(faces.names) - set(split.test.names))
    return RunData(
        train=split.train,
        parts=(),
        calibration=split.calibration,
        test=split.test,
        victim=None,
        pairs=pairs,
        skipped=faces.skipped,
    )


def _require_same(folder: RunFolder, config: RunConfig) -> None:
    """Refuses to continue a run under another configuration."""
    old: dict[str, Any] = folder.config
    new = config.to_yaml_dict()
    if differing := sorted(k for k in {*old, *new} - {"output"} if old.get(k) != new.get(k)):
        raise RunFolderError(
            f"{config.name}: --resume needs the configuration that the run was started with, "
            f"found other values in: {', '.join(differing)}"
        )
