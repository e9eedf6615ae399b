"""The command line: ``fedface run``, ``compare`` and ``check`` a CONFIG, ``table`` and ``report`` a
FOLDER.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from simulations import cli_deploy, cli_site

app = typer.Typer(
    help="Federated face recognition that survives poisoned sites.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

cli_deploy.add_to(app)
cli_site.add_to(app)

ConfigPath = Annotated[Path, typer.Argument(help="YAML file that describes the whole run.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the last checkpoint; skip complete runs.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Delete an earlier run of this name.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder for run folders (default: the config's).")
]


@app.command("run")
def run_command(
    config: ConfigPath, resume: Resume = False, replace: Replace = False, output: Output = None
) -> None:
    """Run a configuration, with all its variants and seeds, and print the result table."""
    if resume and replace:
        _fail("--resume and --replace exclude each other", code=2)
    from fedface.config import ConfigError, read_yaml
    from fedface.report.run_folder import RunFolderError
    from simulations.engine.workers import EngineFailed
    from simulations.execution import run
    from simulations.schema import load_run
    from simulations.server import RunFailed
    from simulations.vertical_execution import run_vertical
    from simulations.vertical_schema import is_vertical, load_vertical
    from strategies.cohorts import TooFewClients

    try:
        if is_vertical(read_yaml(config)):
            run_vertical(load_vertical(config, output), Console(), resume, replace)
        else:
            run(load_run(config, output), Console(), resume, replace)
    except (ConfigError, RunFolderError) as error:
        _fail(str(error), code=2)
    except (RunFailed, TooFewClients, EngineFailed, ValueError, OSError) as error:
        _fail(f"run failed: {error}", code=1)
    except KeyboardInterrupt:
        _fail("stopped; continue with --resume", code=130)


@app.command("compare")
def compare_command(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, each of a comparison grid.")],
    resume: Resume = False,
    replace: Replace = False,
    output: Output = None,
) -> None:
    """Run every defence against every attack of a comparison grid, and rank the defences."""
    if resume and replace:
        _fail("--resume and --replace exclude each other", code=2)
    from fedface.config import ConfigError
    from fedface.report.run_folder import RunFolderError
    from simulations.comparison import compare
    from simulations.grid import load_grid

    try:
        grids = [load_grid(config, output) for config in configs]
        failed = [compare(grid, Console(), resume, replace) for grid in grids]
    except (ConfigError, RunFolderError) as error:
        _fail(str(error), code=2)
    except (ValueError, OSError, ConnectionError) as error:
        _fail(f"comparison failed: {error}", code=1)
    except KeyboardInterrupt:
        _fail("stopped; continue with --resume", code=130)
    if any(failed):
        sys.exit(1)


@app.command("check")
def check_command(config: ConfigPath) -> None:
    """Check a configuration file, all variants or cells included, without running it."""
    from fedface.config import ConfigError, read_yaml
    from simulations.grid import cells, is_grid, load_grid
    from simulations.schema import load_run, variants
    from simulations.vertical_schema import is_vertical, load_vertical, vertical_variants

    runs: Sequence[object]
    try:
        if is_vertical(content := read_yaml(config)):
            runs = vertical_variants(load_vertical(config), str(config))
        elif is_grid(content):
            runs = cells(load_grid(config), str(config))
        else:
            runs = variants(load_run(config), str(config))
    except ConfigError as error:
        _fail(str(error), code=2)
    typer.echo(f"{config}: valid, {len(runs)} run{'s' if len(runs) > 1 else ''}")


@app.command("table")
def table_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a comparison.")],
) -> None:
    """Print the result table of finished runs as Markdown."""
    from fedface.report.run_folder import RunFolder
    from fedface.report.tables import comparison_table
    from simulations.vertical_execution import is_vertical_folder, table_of

    if is_vertical_folder(folder):
        typer.echo(table_of(folder).markdown(), nl=False)
        return
    results: dict[str, list[dict[str, object]]] = {}
    for path in sorted(folder.rglob("result.json")):
        result = RunFolder(path.parent).result()
        variant = path.parent.relative_to(folder).parts[0] if path.parent != folder else folder.name
        results.setdefault(variant, []).append(result or {})
    if not results:
        _fail(f"{folder}: needed finished runs, found no result.json", code=2)
    typer.echo(comparison_table(results).markdown(), nl=False)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a comparison.")],
) -> None:
    """Remake report, model cards, exported models or a grid's results, without training."""
    from fedface.config import ConfigError
    from fedface.report.completion import complete
    from fedface.report.run_folder import RunFolderError
    from simulations.comparison import GRID, remake
    from simulations.vertical_execution import is_vertical_folder, remake_vertical

    try:
        if is_vertical_folder(folder):
            written = remake_vertical(folder)
        else:
            written = remake(folder) if (folder / GRID).is_file() else complete(folder)
    except (ConfigError, RunFolderError, OSError) as error:
        _fail(str(error), code=2)
    for path in written:
        typer.echo(path)


def run_main() -> None:
    """The entry of ``python simulations/run.py``: the run command alone."""
    typer.run(run_command)


def compare_main() -> None:
    """The entry of ``python simulations/compare.py``: the compare command alone."""
    typer.run(compare_command)


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
