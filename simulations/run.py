"""Runs one configuration: ``python simulations/run.py configs/demo.yaml``."""

import shutil
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fedface.config import ConfigError
from fedface.report.run_folder import RunFolder, RunFolderError, write_atomically
from fedface.report.tables import Table, comparison_table
from simulations.schema import RunConfig, variants


def run(config: RunConfig, console: Console, resume: bool = False, replace: bool = False) -> Table:
    """Runs ``config``, or every variant and seed of its comparison, and returns the result table.

    Args:
        config: A run as ``load_run`` returns it.
        console: Where progress and the table are shown.
        resume: Continue what was started; complete runs are not run again.
        replace: Delete what was there before.

    Raises:
        ConfigError: If the configuration cannot be run on its data.
        RunFolderError: If a run folder is in the way or belongs to another configuration.
        RunFailed: If the run could not go on.
    """
    top = RunFolder(config.folder)
    if replace and top.exists():
        shutil.rmtree(top.path)
    if config.compare is not None:
        _prepare(top, config, resume)
    results: dict[str, list[dict[str, Any]]] = {}
    for variant, _, single in variants(config):
        results.setdefault(variant, []).append(run_single(single, console, variant, resume))
    table = comparison_table(results)
    _show(console, table, config)
    write_atomically(top.path / "table.md", table.markdown())
    return table


def run_single(
    config: RunConfig, console: Console, title: str, resume: bool = False
) -> dict[str, Any]:
    """Runs one configuration without variants; returns the contents of its ``result.json``."""
    folder = RunFolder(config.folder)
    if resume and folder.exists() and (done := folder.result()) is not None:
        _require_same(folder, config)
        console.print(f"{title} seed {config.seed}: complete already", highlight=False)
        return done
    import torch

    from simulations.app import client_app
    from simulations.build import build_data, device_of_worker
    from simulations.display import Display
    from simulations.results import summarise
    from simulations.server import Server

    torch.set_num_threads(1)
    try:
        data = build_data(config)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    _prepare(folder, config, resume)
    for skip in data.train.skipped:
        console.print(f"  skipped {skip.what}: {skip.why}", markup=False, highlight=False)
    n_cohort = config.federation.clients_per_round or config.federation.n_clients
    with Display(
        console, f"{title} seed {config.seed}", config.federation.n_rounds, n_cohort
    ) as display:
        server = Server(config, data, folder, display, device_of_worker())
        if server.completed < config.federation.n_rounds:
            config.engine.run(server, client_app(config), config.federation.n_clients)
    result = summarise(config, folder)
    folder.write_result(result)
    return result


def _prepare(folder: RunFolder, config: RunConfig, resume: bool) -> None:
    """Makes the run folder, or checks that it holds a run of this very configuration."""
    from simulations.environment import describe_environment

    if resume and folder.exists():
        _require_same(folder, config)
    else:
        RunFolder.create(folder.path, config.to_yaml_dict(), describe_environment())


def _require_same(folder: RunFolder, config: RunConfig) -> None:
    """Refuses to mix two configurations in one folder."""
    old, new = folder.config, config.to_yaml_dict()
    if differing := sorted(k for k in {*old, *new} if old.get(k) != new.get(k)):
        raise RunFolderError(
            f"{folder.path}: --resume needs the configuration that the run was started with, "
            f"found other values in: {', '.join(differing)}"
        )


def _show(console: Console, table: Table, config: RunConfig) -> None:
    """Prints the result table and where everything is."""
    rates = config.evaluation.false_accept_rates
    tar, asr, lift = f"TAR@{max(rates):g}", f"ASR@{min(rates):g}", f"lift@{min(rates):g}"
    table = table.select(("variant", tar, "EER", asr, lift, "TPR", "FPR"))
    shown = RichTable(title=f"{config.name}: measured on people whom nobody trained on")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(f"run folder: {config.folder}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    from simulations.cli import run_main

    run_main()
