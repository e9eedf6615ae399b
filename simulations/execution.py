"""Runs a configuration with all its variants and seeds, and writes down what came out."""

import shutil
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from fedface.config import ConfigError, parse_config
from fedface.report.completion import complete_if_needed, complete_run
from fedface.report.html import write_report
from fedface.report.run_folder import RunFolder, RunFolderError, write_atomically
from fedface.report.tables import Table, comparison_table
from simulations.schema import RunConfig, variants

if TYPE_CHECKING:
    from simulations.build import RunData


def run(config: RunConfig, console: Console, resume: bool = False, replace: bool = False) -> Table:
    """Runs ``config``, or every variant and seed of its comparison, and returns the result table.

    Args:
        config: A run as ``load_run`` returns it.
        console: Where progress and the table are shown.
        resume: Continue what was started; complete runs are not run again.
        replace: Delete what was there before.

    Raises:
        ConfigError: If the configuration cannot be run on its data.
        RunFolderError: If a run folder is in the way, is at work, is damaged or belongs to another
            configuration.
        RunFailed: If the run could not go on, or workers died more often than the engine restarts.
    """
    top = RunFolder(config.folder)
    if replace and top.exists():
        with ExitStack() as held:
            for part in top.parts():
                held.enter_context(part.alone())
        shutil.rmtree(top.path)
    if config.compare is not None:
        _prepare(top, config, resume)
    results: dict[str, list[dict[str, Any]]] = {}
    runs = variants(config)
    alike = all(single.engine == config.engine for _, _, single in runs)
    with config.engine.ready() if alike else nullcontext():
        for variant, _, single in runs:
            results.setdefault(variant, []).append(run_single(single, console, variant, resume))
    table = comparison_table(results)
    _show(console, table, config)
    write_atomically(top.path / "table.md", table.markdown())
    report = write_report(top.path)
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)
    return table


def run_single(
    config: RunConfig, console: Console, title: str, resume: bool = False
) -> dict[str, Any]:
    """Runs one configuration without variants; returns the contents of its ``result.json``."""
    folder = RunFolder(config.folder)
    if resume and folder.exists() and (done := folder.result()) is not None:
        _require_same(folder, config)
        console.print(f"{title} seed {config.seed}: complete already", highlight=False)
        complete_if_needed(folder.path)
        return done
    import torch

    from simulations.build import build_data, check_fit
    from simulations.evaluation import Reference
    from simulations.results import summarise

    torch.set_num_threads(1)
    Reference.of(config)  # refuses a missing one before anything is written
    try:
        data = build_data(config)
        check_fit(config, data)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    with folder.alone():
        _prepare(folder, config, resume)
        for skip in data.skipped:
            console.print(f"  skipped {skip.what}: {skip.why}", markup=False, highlight=False)
        _federate(config, data, folder, console, f"{title} seed {config.seed}")
        result = summarise(config, folder) | _who_took_part(config, data)
        folder.write_result(result)
        complete_run(folder.path)
    return result


def _federate(
    config: RunConfig, data: "RunData", folder: RunFolder, console: Console, title: str
) -> None:
    """Runs the rounds that are left; after a killed worker goes on from the last checkpoint."""
    from simulations.app import client_app
    from simulations.build import device_of_worker
    from simulations.display import Display
    from simulations.server import Server, WorkerLost

    federation = config.federation
    n_cohort = federation.clients_per_round or federation.n_clients
    for restarts_left in reversed(range(config.engine.max_restarts + 1)):
        with Display(console, title, federation.n_rounds, n_cohort) as display:
            server = Server(config, data, folder, display, device_of_worker())
            try:
                if server.completed < federation.n_rounds:
                    config.engine.run(server, client_app(config), federation.n_clients)
                return
            except WorkerLost as error:
                if not restarts_left:
                    raise
                console.print(f"  {error}; starting the workers anew", markup=False, soft_wrap=True)


def _who_took_part(config: RunConfig, data: "RunData") -> dict[str, Any]:
    """The malicious sites and how many people and images there were; numbers, no names."""
    from simulations.build import malicious_clients

    images = [len(part) for part in data.parts]
    people = [len(set(data.train.identities[part].tolist())) for part in data.parts]
    groups = {"calibration": data.calibration, "test": data.test}
    return {
        "malicious_clients": list(malicious_clients(config)),
        "data": {
            "image_size": data.train.images.shape[1],
            "train": {"identities": data.train.n_identities, "images": sum(images)},
            **{
                name: {"identities": faces.n_identities, "images": len(faces.images)}
                for name, faces in groups.items()
            },
            "victim_images": None
            if data.victim is None
            else len(data.victim.photos) + len(data.victim.gallery),
            "n_sites": len(data.parts),
            "images_per_site": [min(images), max(images)],
            "identities_per_site": [min(people), max(people)],
            "n_skipped": len(data.skipped),
        },
    }


def _prepare(folder: RunFolder, config: RunConfig, resume: bool) -> None:
    """Makes the run folder, or checks that it holds a run of this very configuration."""
    from simulations.environment import describe_environment

    if resume and folder.exists():
        _require_same(folder, config)
    else:
        RunFolder.create(folder.path, config.to_yaml_dict(), describe_environment())


def _require_same(folder: RunFolder, config: RunConfig) -> None:
    """Refuses to mix two configurations in one folder."""
    old, new = _with_defaults(folder.config), config.to_yaml_dict()
    if differing := sorted(k for k in {*old, *new} if old.get(k) != new.get(k)):
        raise RunFolderError(
            f"{folder.path}: --resume needs the configuration that the run was started with, "
            f"found other values in: {', '.join(differing)}"
        )


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier fedface recorded, with those that it did not know at their defaults.

    A new setting's default is what was done before there was a setting.
    """
    try:
        return parse_config(recorded, RunConfig, "recorded").to_yaml_dict()
    except ConfigError:
        return recorded


def _show(console: Console, table: Table, config: RunConfig) -> None:
    """Prints the result table and where everything is."""
    rates = sorted(config.evaluation.false_accept_rates)
    measured = [f"{rate:g}" for rate in rates if f"TAR@{rate:g}" in table.columns]
    figures = ["EER"]
    if measured:
        figures = [f"TAR@{measured[-1]}", f"ASR@{measured[0]}", f"lift@{measured[0]}"]
    table = table.select(("variant", *figures, "TPR", "FPR"))
    shown = RichTable(
        title=f"{config.name}: measured on people whom nobody trained on",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in table.rows:
        shown.add_row(*(cell.replace(" (", "\n(") for cell in row))
    console.print(shown)
    console.print(f"run folder: {config.folder}", markup=False, highlight=False, soft_wrap=True)
