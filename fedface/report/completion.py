"""What completes a run folder: the exported model, the model card and the report."""

from pathlib import Path

from fedface.report import export, html, model_card
from fedface.report.recorded import read_recording


def complete_run(path: Path) -> tuple[Path, ...]:
    """Writes the exported model and the model card of the complete run in ``path``.

    Raises:
        RunFolderError: If the run is not complete or lacks its last checkpoint.
        ConfigError: If its backbone is none that this fedface knows.
    """
    export.export_model(path)
    card = model_card.write_model_card(path)
    return path / export.WEIGHTS, path / export.DESCRIPTION, card


def is_completed(path: Path) -> bool:
    """Whether the run folder ``path`` has its exported model and its model card."""
    names = (export.WEIGHTS, export.DESCRIPTION, model_card.NAME)
    return all((path / name).is_file() for name in names)


def complete_if_needed(path: Path) -> None:
    """Completes the run folder ``path`` where a kill left it without one of its pieces.

    Raises:
        RunFolderError: If the run is not complete or lacks its last checkpoint.
        ConfigError: If its backbone is none that this fedface knows.
    """
    if not is_completed(path):
        complete_run(path)


def complete(path: Path) -> tuple[Path, ...]:
    """Remakes everything below the folder of a run or a comparison from what was recorded.

    Every run gets its exported model and its model card; ``path`` gets the one report.

    Raises:
        RunFolderError: If a run is missing, not complete or lacks its last checkpoint.
        ConfigError: If a backbone is none that this fedface knows.
    """
    runs = read_recording(path).runs
    written = tuple(file for run in runs for file in complete_run(run.path))
    return *written, html.write_report(path)
