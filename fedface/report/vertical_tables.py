"""Tables of finished vertical runs: recorded results in, rows out."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedface.report.tables import MISSING, Table

Result = Mapping[str, Any]


def vertical_table(results: Mapping[str, Sequence[Result]]) -> Table:
    """Returns one row per variant: what was spent and how well strangers and enrolled are known.

    With several seeds a cell is mean (lowest..highest); with one seed accuracies show their 95 %
    identity-bootstrap interval. Epsilon is what a party reports for its most released record,
    replace-one and zero-out.

    Args:
        results: Variant -> the ``result.json`` contents of its seeds.

    Raises:
        ValueError: If there is no variant.
    """
    if not results:
        raise ValueError("vertical_table needs at least one variant, got none")
    alphas = sorted(
        {p["alpha"] for runs in results.values() for run in runs for p in _points(run)},
        reverse=True,
    )
    columns = ("enrolled", *(f"TAR@{alpha:g}" for alpha in alphas), "EER", "rank-1")
    rows = []
    for variant, runs in results.items():
        found = [_figures(run, alphas) for run in runs]
        cells = (_cell([figures[i] for figures in found]) for i in range(len(columns)))
        rows.append((variant, str(len(runs)), _epsilon(runs), *cells))
    return Table(("variant", "seeds", "epsilon (replace-one / zero-out)", *columns), tuple(rows))


def _measured(run: Result) -> Mapping[str, Any] | None:
    evaluation = run.get("evaluation")
    return None if evaluation is None or "failed" in evaluation else evaluation


def _points(run: Result) -> list[dict[str, Any]]:
    measured = _measured(run)
    return [] if measured is None else list(measured["verification"]["points"])


def _figures(run: Result, alphas: Sequence[float]) -> list[tuple[float, ...] | None]:
    """One figure per column: (value, low, high), (value,) or nothing."""
    measured = _measured(run)
    if measured is None:
        return [None] * (len(alphas) + 3)
    enrolled, points = measured["enrolled"], {p["alpha"]: p for p in _points(run)}
    rate = measured["identification"]["rates"][0]
    return [
        None if enrolled is None else (enrolled["accuracy"], enrolled["low"], enrolled["high"]),
        *((p["tar"], p["low"], p["high"]) if (p := points.get(a)) else None for a in alphas),
        (measured["verification"]["eer"],),
        (rate["rate"], rate["low"], rate["high"]),
    ]


def _cell(values: Sequence[tuple[float, ...] | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    centres = [value[0] for value in known]
    mean = f"{sum(centres) / len(centres):.3f}"
    if len(known) > 1:
        return f"{mean} ({min(centres):.3f}..{max(centres):.3f})"
    return f"{mean} ({known[0][1]:.3f}..{known[0][2]:.3f})" if len(known[0]) == 3 else mean


def _epsilon(runs: Sequence[Result]) -> str:
    """The largest epsilon that any party of any seed has spent, under both neighbours."""
    spent = [s for run in runs for s in (run.get("spent") or {}).values() if "replace_one" in s]
    if not spent:
        return MISSING
    pair = (max(s[name] for s in spent) for name in ("replace_one", "zero_out"))
    return " / ".join(f"{epsilon:.3g}" for epsilon in pair)
