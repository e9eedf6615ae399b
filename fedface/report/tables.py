"""Tables of finished runs: recorded results in, rows out; nothing is typed by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Column titles and rows of text.

    Attributes:
        columns: ``(n_columns,)`` titles.
        rows: Each ``(n_columns,)`` cells.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comparison_table(results: Mapping[str, Sequence[Result]]) -> Table:
    """Returns one row per variant: accuracy, backdoor and detection, as mean (low..high).

    With several seeds low and high are the lowest and highest seed's figures; with one seed TAR
    and ASR show their 95 % identity-bootstrap interval.

    Args:
        results: Variant -> the ``result.json`` contents of its seeds.

    Raises:
        ValueError: If there is no variant.
    """
    if not results:
        raise ValueError("comparison_table needs at least one variant, got none")
    alphas = sorted(
        {
            point["alpha"]
            for runs in results.values()
            for run in runs
            for point in (_measured(run) or {"verification": {"points": []}})["verification"][
                "points"
            ]
        }
    )
    columns: dict[str, Callable[[Result], tuple[float, float, float] | float | None]] = {}
    for alpha in reversed(alphas):
        columns[f"TAR@{alpha:g}"] = lambda run, a=alpha: _point(run, a, "tar")
    columns["EER"] = lambda run: _path(_measured(run), "verification", "eer")
    columns["rank-1"] = _rank_one
    for alpha in alphas:
        columns[f"ASR@{alpha:g}"] = lambda run, a=alpha: _backdoor(run, a, "recalibrated", "asr")
    for alpha in alphas:
        columns[f"lift@{alpha:g}"] = lambda run, a=alpha: _backdoor(run, a, "recalibrated", "lift")
    for alpha in alphas[:1]:
        columns[f"lift@{alpha:g} deployed"] = lambda run, a=alpha: _backdoor(
            run, a, "deployed", "lift"
        )
    for title, key in (
        ("TPR", "tpr"),
        ("FPR", "fpr"),
        ("AUROC", "auroc_within_rounds"),
        ("max HER", "max_honest_exclusion"),
    ):
        columns[title] = lambda run, k=key: _path(run, "detection", k)
    rows = tuple(
        (variant, str(len(runs)), *(_cell([value(run) for run in runs]) for value in columns.values()))
        for variant, runs in results.items()
    )
    return Table(("variant", "seeds", *columns), rows)


def _measured(run: Result) -> Mapping[str, Any] | None:
    """The run's last evaluation, unless the model could not be measured."""
    evaluation = run.get("evaluation")
    return None if evaluation is None or "failed" in evaluation else evaluation


def _path(record: Mapping[str, Any] | None, *keys: str) -> Any:
    """The value below ``keys``, or None where something on the way is absent."""
    value: Any = record
    for key in keys:
        value = None if value is None else value.get(key)
    return value


def _point(run: Result, alpha: float, key: str) -> tuple[float, float, float] | None:
    for point in _path(_measured(run), "verification", "points") or ():
        if point["alpha"] == alpha:
            return point[key], point["low"], point["high"]
    return None


def _backdoor(
    run: Result, alpha: float, threshold: str, key: str
) -> tuple[float, float, float] | float | None:
    for point in _path(_measured(run), "backdoor", threshold) or ():
        if point["alpha"] == alpha:
            return (point[key], point["low"], point["high"]) if key == "asr" else point[key]
    return None


def _rank_one(run: Result) -> float | None:
    rates = _path(_measured(run), "identification", "rates") or ()
    return next((rate["rate"] for rate in rates if rate["rank"] == 1), None)


def _cell(values: Sequence[tuple[float, float, float] | float | None]) -> str:
    """Mean and range over seeds, or one seed's value with its interval."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    centres = [value[0] if isinstance(value, tuple) else value for value in known]
    mean = f"{sum(centres) / len(centres):.3f}"
    if len(known) > 1:
        return f"{mean} ({min(centres):.3f}..{max(centres):.3f})"
    if isinstance(known[0], tuple):
        return f"{mean} ({known[0][1]:.3f}..{known[0][2]:.3f})"
    return mean
