"""A comparison grid's defences in figures, one overview each.

Every figure is one of fedface/report/bench.py, here over all partitions and malicious shares; time
is that of a round relative to the reference's, over the cells that both completed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedface.report.bench import CLEAN, Bench, Rank
from fedface.report.bench_figures import (
    Figure,
    Record,
    Worst,
    by_group,
    fpr,
    mean_of,
    tpr,
    worst_of,
)
from fedface.report.sentences import percent

FAILS = 0.1
"""A defence fails where ASR lift, TAR loss or honest exclusion reaches this."""

_PLACE = ("partition", "share", "attack")


@dataclass(frozen=True)
class Overview:
    """One defence over the whole grid.

    Attributes:
        defence: The defence.
        rank: Its place, None if it has none.
        lift: Mean ASR lift over attacks with a trigger.
        lift_worst: The case with the largest.
        tar_loss: Mean TAR loss under attack.
        tar_loss_worst: The case with the largest.
        clean_tar_loss: TAR loss without any attack.
        tpr: Mean share of malicious client-rounds excluded.
        fpr: Mean share of honest client-rounds excluded, under attack.
        clean_exclusion: The same without any attack.
        seconds: Mean seconds of a round.
        slowdown: Seconds of a round relative to the reference's.
        n_complete: Cells that are complete.
        n_cells: Cells that the grid asks for.
        failures: (case, what) of every attacked case where it fails.
    """

    defence: str
    rank: Rank | None
    lift: Figure | None
    lift_worst: Worst | None
    tar_loss: Figure | None
    tar_loss_worst: Worst | None
    clean_tar_loss: Figure | None
    tpr: Figure | None
    fpr: Figure | None
    clean_exclusion: Figure | None
    seconds: float | None
    slowdown: float | None
    n_complete: int
    n_cells: int
    failures: tuple[tuple[str, str], ...]


def overviews(bench: Bench, n_cells: Mapping[str, int]) -> list[Overview]:
    """Returns an overview per defence in the records, in the order of the ranking.

    Args:
        bench: The recorded cells.
        n_cells: Defence -> how many cells the grid asks for.
    """
    ranks = {rank.defence: rank for rank in bench.ranking()}
    names = [*ranks, *(name for name in bench.names("defence") if name not in ranks)]
    return [_overview(bench, name, ranks.get(name), n_cells.get(name, 0)) for name in names]


def case(bench: Bench, where: str) -> str:
    """Returns ``partition/share/attack`` as readers see it, short where there is one place only."""
    named = {f"{r['partition']}/{r['share']:g}/{r['attack']}": r for r in bench.records}
    if where not in named:
        return where
    partition, share, attack = (named[where][field] for field in _PLACE)
    shown = "no attack" if attack == CLEAN else str(attack)
    attacked = [r for r in bench.records if r["attack"] != CLEAN]
    parts = [str(partition)] if len({r["partition"] for r in bench.records}) > 1 else []
    if attack != CLEAN and len({r["share"] for r in attacked}) > 1:
        parts.append(f"{percent(share)} malicious")
    return f"{shown} ({', '.join(parts)})" if parts else shown


def points(figure: Figure | None) -> str:
    """Returns a difference of rates in percentage points, a dash for None."""
    return "-" if figure is None else f"{100 * figure.value:z.1f} points"


def _overview(bench: Bench, defence: str, rank: Rank | None, n_cells: int) -> Overview:
    complete = bench.select(defence=defence)
    attacked = by_group((r for r in complete if r["attack"] != CLEAN), *_PLACE)
    clean = by_group((r for r in complete if r["attack"] == CLEAN), *_PLACE)
    seconds = [s for r in complete if (s := _seconds(r)) is not None]
    return Overview(
        defence,
        rank,
        lift=mean_of(attacked.values(), bench.lift),
        lift_worst=worst_of(attacked, bench.lift),
        tar_loss=mean_of(attacked.values(), bench.tar_loss),
        tar_loss_worst=worst_of(attacked, bench.tar_loss),
        clean_tar_loss=mean_of(clean.values(), bench.tar_loss),
        tpr=mean_of(attacked.values(), tpr),
        fpr=mean_of(attacked.values(), fpr),
        clean_exclusion=mean_of(clean.values(), fpr),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        slowdown=_slowdown(bench, complete),
        n_complete=len(complete),
        n_cells=n_cells,
        failures=tuple(_failures(bench, {**clean, **attacked})),
    )


def _failures(bench: Bench, groups: Mapping[str, Sequence[Record]]) -> list[tuple[str, str]]:
    """The cases in which one of the three parts of damage is large, the largest first."""
    measures: dict[str, Callable[[Record], Figure | None]] = {
        "ASR lift": bench.lift,
        "TAR loss": bench.tar_loss,
        "honest updates excluded": fpr,
    }
    found = [
        (figure.value, case(bench, where), f"{title} {points(figure)}")
        for where, records in groups.items()
        for title, measure in measures.items()
        if (figure := mean_of([records], measure)) is not None and figure.value >= FAILS
    ]
    return [(where, what) for _, where, what in sorted(found, key=lambda f: -f[0])]


def _seconds(record: Record) -> float | None:
    if not record["seconds"] or not record.get("n_rounds"):
        return None
    return float(record["seconds"]) / int(record["n_rounds"])


def _slowdown(bench: Bench, complete: Sequence[Record]) -> float | None:
    """Seconds per round of these cells over those of the reference's cells beside them."""
    beside = {_beside(r): s for r in bench.complete if r["reference"] and (s := _seconds(r))}
    pairs = [
        (s, beside[_beside(r)]) for r in complete if (s := _seconds(r)) and _beside(r) in beside
    ]
    return sum(own for own, _ in pairs) / sum(ref for _, ref in pairs) if pairs else None


def _beside(record: Record) -> tuple[Any, ...]:
    return tuple(record[field] for field in (*_PLACE, "seed"))
