"""Runs a vertical configuration with all its variants and seeds, and writes down what came out."""

import shutil
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from fedface.config import ConfigError, parse_config
from fedface.report.run_folder import RunFolder, RunFolderError, write_atomically
from fedface.report.tables import Table
from fedface.report.vertical_tables import vertical_table
from simulations.vertical_schema import VerticalConfig, is_vertical, vertical_variants

if TYPE_CHECKING:
    from simulations.vertical_build import VerticalRecords


def run_vertical(
    config: VerticalConfig, console: Console, resume: bool = False, replace: bool = False
) -> Table:
    """Runs ``config``, or every variant and seed of its comparison, and returns the result table.

    Args:
        config: A run as ``load_vertical`` returns it.
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
    runs = vertical_variants(config)
    alike = all(single.engine == config.engine for _, _, single in runs)
    with config.engine.ready() if alike else nullcontext():
        for variant, _, single in runs:
            found = run_single_vertical(single, console, variant, resume)
            results.setdefault(variant, []).append(found)
    table = vertical_table(results)
    _show(console, table, config)
    write_atomically(top.path / "table.md", table.markdown())
    return table


def run_single_vertical(
    config: VerticalConfig, console: Console, title: str, resume: bool = False
) -> dict[str, Any]:
    """Runs one configuration without variants; returns the contents of its ``result.json``."""
    folder = RunFolder(config.folder)
    if resume and folder.exists() and (done := folder.result()) is not None:
        _require_same(folder, config)
        console.print(f"{title} seed {config.seed}: complete already", highlight=False)
        return done
    import torch

    from simulations.vertical_build import build_records

    torch.set_num_threads(1)
    try:
        records = build_records(config)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    with folder.alone():
        _prepare(folder, config, resume)
        for skip in records.skipped:
            console.print(f"  skipped {skip.what}: {skip.why}", markup=False, highlight=False)
        _federate(config, records, folder, console, f"{title} seed {config.seed}")
        result = summarise_vertical(config, folder)
        folder.write_result(result)
    return result


def summarise_vertical(config: VerticalConfig, folder: RunFolder) -> dict[str, Any]:
    """Returns the last evaluation, what was spent and what went wrong, of what was recorded."""
    rounds, evaluations = folder.events("round"), folder.events("evaluation")
    spent: dict[str, Any] = {}
    for event in rounds:
        spent |= event["spent"]
    release = config.passive.release
    return {
        "name": config.name,
        "kind": config.kind,
        "seed": config.seed,
        "parties": config.parties.model_dump(mode="json"),
        "active_at": config.active.at,
        "release": release.name,
        "statement": release.statement() if config.parties.passive else None,
        "noise_per_clip": None if release.bound is None else release.noise / release.bound,
        "spent": spent,
        "n_rounds": len(rounds),
        "n_steps": sum(event["n_steps"] for event in rounds),
        "seconds": round(sum(event["seconds"] for event in rounds), 1),
        "n_refused": sum(count for e in rounds for _, count in e["refused"].values()),
        "alignment": folder.events("alignment")[-1],
        "evaluation": evaluations[-1] if evaluations else None,
    }


def is_vertical_folder(folder: Path) -> bool:
    """Returns whether ``folder`` is that of a vertical run or comparison."""
    return RunFolder(folder).exists() and is_vertical(RunFolder(folder).config)


def remake_vertical(folder: Path) -> tuple[Path, ...]:
    """Writes the result table of the finished vertical runs below ``folder`` anew.

    Raises:
        RunFolderError: If there is none.
    """
    write_atomically(folder / "table.md", table_of(folder).markdown())
    return (folder / "table.md",)


def table_of(folder: Path) -> Table:
    """Returns the result table of the finished vertical runs below ``folder``.

    Raises:
        RunFolderError: If there is none.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("result.json")):
        result = RunFolder(path.parent).result()
        variant = path.parent.relative_to(folder).parts[0] if path.parent != folder else folder.name
        results.setdefault(variant, []).append(result or {})
    if not results:
        raise RunFolderError(f"{folder}: needed finished runs, found no result.json")
    return vertical_table(results)


def _federate(
    config: VerticalConfig,
    records: "VerticalRecords",
    folder: RunFolder,
    console: Console,
    title: str,
) -> None:
    """Runs the rounds that are left; after a killed worker goes on from the last checkpoint."""
    from simulations.build import device_of_worker
    from simulations.engine import InProcessEngine
    from simulations.server import WorkerLost
    from simulations.vertical_active import build_active_side
    from simulations.vertical_app import vertical_client_app
    from simulations.vertical_display import VerticalDisplay
    from simulations.vertical_server import VerticalServer

    n_nodes, total = config.n_nodes, config.training.total_rounds
    engine = config.engine if n_nodes else InProcessEngine()  # nobody to send anything to
    # An active party that is a client has its labels there: the server gets none.
    hosted = config.active.at == "server"
    side = build_active_side(config, records, device_of_worker()) if hosted else None
    for restarts_left in reversed(range(engine.max_restarts + 1)):
        with VerticalDisplay(console, title, total) as display:
            server = VerticalServer(config, side, folder, display)
            try:
                if server.completed < total:
                    engine.run(server, vertical_client_app(config), n_nodes)
                return
            except WorkerLost as error:
                if not restarts_left:
                    raise
                console.print(f"  {error}; starting the workers anew", markup=False, soft_wrap=True)


def _prepare(folder: RunFolder, config: VerticalConfig, resume: bool) -> None:
    """Makes the run folder, or checks that it holds a run of this very configuration."""
    from simulations.environment import describe_environment

    if resume and folder.exists():
        _require_same(folder, config)
    else:
        RunFolder.create(folder.path, config.to_yaml_dict(), describe_environment())


def _require_same(folder: RunFolder, config: VerticalConfig) -> None:
    """Refuses to mix two configurations in one folder."""
    old, new = _completed(folder.config), config.to_yaml_dict()
    if differing := sorted(k for k in {*old, *new} if old.get(k) != new.get(k)):
        raise RunFolderError(
            f"{folder.path}: --resume needs the configuration that the run was started with, "
            f"found other values in: {', '.join(differing)}"
        )


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of settings that are younger than its run."""
    try:
        return parse_config(content, VerticalConfig, "config.yaml").to_yaml_dict()
    except ConfigError:
        return content


def _show(console: Console, table: Table, config: VerticalConfig) -> None:
    """Prints the result table, what may be said of the release and where everything is."""
    shown = RichTable(
        title=f"{config.name}: measured on released embeddings",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in table.rows:
        shown.add_row(*(cell.replace(" (", "\n(") for cell in row))
    console.print(shown)
    if config.parties.passive:
        console.print(config.passive.release.statement(), markup=False, highlight=False)
    console.print(f"run folder: {config.folder}", markup=False, highlight=False, soft_wrap=True)
