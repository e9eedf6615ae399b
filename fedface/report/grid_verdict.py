"""What a comparison grid says in words: which defence to use, what it costs and where it fails.

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
from fedface.report.sentences import one_in, percent

FAILS = 0.1
"""A defence fails where ASR lift, TAR loss or honest exclusion reaches this."""
HARMLESS = 0.05
"""Attacks teach nothing about defences if without any their lift stays below this, and the TAR loss
below :data:`FAILS`."""
MAX_NAMED = 6


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


def verdict(bench: Bench, found: Sequence[Overview], reference: str) -> list[str]:
    """Returns sentences: the answer first, then what it rests on and what it does not show."""
    ranked = [(overview.rank, overview) for overview in found if overview.rank is not None]
    if not ranked:
        return ["No defence can be ranked: no clean reference and no cell that can be compared."]
    best = ranked[0][1]
    said = [_answer(bench, ranked, reference)]
    undefended = next((o for o in found if o.defence == reference), None)
    if undefended is None or _harmless(undefended):
        said.append(
            f"Caution: not even with {reference} did an attack gain much here, so this grid cannot "
            "show what a defence is good for."
        )
    said += [_protection(bench, best), _price(best, reference)]
    if undefended is not None and undefended is not best:
        said.append(_undefended(undefended))
    under = f"under {_named(best)}" if best.failures else "in none of its cells"
    said.append(f"{best.defence} fails {under}.")
    return [sentence for sentence in (*said, *_uncertainty(ranked)) if sentence]


def setting(bench: Bench, grid: Mapping[str, Any], people: Mapping[str, Any] | None) -> str:
    """Returns one sentence: sites, malicious shares, people, attacks, seeds.

    Args:
        bench: The recorded cells.
        grid: The settings of ``grid.yaml``.
        people: ``data`` of a cell's result, None if none recorded it.
    """
    federation = grid["base"].get("federation", {})
    shares = sorted({r["share"] for r in bench.records if r["attack"] != CLEAN})
    malicious = " or ".join(percent(share) for share in shares) or "none"
    counts = ""
    if people is not None:
        counts = (
            f" They train on {people['train']['identities']} people; everything is measured on "
            f"{people['test']['identities']} others."
        )
    return (
        f"{federation.get('n_clients', '?')} sites, {malicious} of them malicious, "
        f"{federation.get('n_rounds', '?')} rounds.{counts} "
        f"{_count(len(grid['defences']), 'defence')}, {_count(len(grid['attacks']), 'attack')}, "
        f"{_count(len(grid['partitions']), 'partition')}, {_count(len(grid['seeds']), 'seed')}. "
        f"Rates are at {_rates(bench)}."
    )


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


_PLACE = ("partition", "share", "attack")


def _failures(bench: Bench, groups: Mapping[str, Sequence[Record]]) -> list[tuple[str, str]]:
    """The cases in which one of the three parts of damage is large, the largest first."""
    measures: dict[str, Callable[[Record], Figure | None]] = {
        "ASR lift": bench.lift,
        "TAR loss": bench.tar_loss,
        "honest updates excluded": fpr,
    }
    found = [
        (figure.value, case(bench, where), f"{title} {_points(figure)}")
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


def _answer(bench: Bench, ranked: Sequence[tuple[Rank, Overview]], reference: str) -> str:
    rank = ranked[0][0]
    if rank.defence == reference:
        text = f"No defence does less damage at its worst than {reference}, which is none"
    else:
        text = f"Use {rank.defence}: of {len(ranked)} rules it does the least damage at its worst"
    text += f", {rank.worst.figure.value:.2f} under {case(bench, rank.worst.where)}"
    if rank.by_mean == 1:
        return f"{text}, and the least on average, {rank.mean.value:.2f}."
    by_mean = min((other for other, _ in ranked), key=lambda other: other.by_mean)
    return (
        f"{text} (mean {rank.mean.value:.2f}). On average {by_mean.defence} does the least, "
        f"{by_mean.mean.value:.2f}."
    )


def _protection(bench: Bench, best: Overview) -> str:
    if best.lift is None or best.lift_worst is None:
        return ""
    return (
        f"With {best.defence} attacks gain a mean ASR lift of {_points(best.lift)}, at worst "
        f"{_points(best.lift_worst.figure)}, under {case(bench, best.lift_worst.where)}."
    )


def _harmless(undefended: Overview) -> bool:
    harms = ((undefended.lift_worst, HARMLESS), (undefended.tar_loss_worst, FAILS))
    return all(harm is None or harm.figure.value < limit for harm, limit in harms)


def _undefended(overview: Overview) -> str:
    """What attacks gain where nothing defends, or cost where they have no trigger."""
    without = f"With {overview.defence}, which is no defence, attacks"
    if (lift := overview.lift_worst) is not None:
        mean = _points(overview.lift)
        return f"{without} gain a mean ASR lift of {mean}, at worst {_points(lift.figure)}."
    if (loss := overview.tar_loss_worst) is not None:
        mean = _points(overview.tar_loss)
        return f"{without} cost {mean} of TAR on average, at worst {_points(loss.figure)}."
    return ""


def _price(best: Overview, reference: str) -> str:
    """What the defence costs: recognition, honest updates and time."""
    parts = []
    if best.clean_tar_loss is not None and best.defence != reference:
        parts.append(f"{_points(best.clean_tar_loss)} of TAR when nobody attacks")
    if best.tar_loss is not None:
        parts.append(f"{_points(best.tar_loss)} of TAR under attack")
    if best.fpr is not None:
        parts.append(f"{percent(best.fpr.value)} of the honest updates excluded under attack")
    if best.clean_exclusion is not None:
        parts.append(f"{percent(best.clean_exclusion.value)} of them when nobody attacks")
    if best.slowdown is not None and best.defence != reference:
        parts.append(f"{best.slowdown:.1f} times the time of a round with {reference}")
    return f"The price: {', '.join(parts)}." if parts else ""


def _named(overview: Overview) -> str:
    shown = [f"{where} ({what})" for where, what in overview.failures[:MAX_NAMED]]
    left = len(overview.failures) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left > 0 else "")


def _uncertainty(ranked: Sequence[tuple[Rank, Overview]]) -> list[str]:
    """Says so where intervals do not tell the first from those after it, or cells are lacking."""
    said = []
    first, high = ranked[0][0].defence, ranked[0][0].worst.figure.high
    lows = {rank.defence: rank.worst.figure.low for rank, _ in ranked[1:]}
    close = [
        defence
        for defence, low in lows.items()
        if low is not None and high is not None and low <= high
    ]
    if close:
        said.append(
            f"Intervals overlap: {first}'s worst case cannot be told from that of {_list(close)}."
        )
    lacking = [overview.defence for _, overview in ranked if overview.n_complete < overview.n_cells]
    if lacking:
        said.append(
            f"Cells of {_list(lacking)} failed or were not run and are in no figure, which may "
            "flatter: see the end."
        )
    return said


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _points(figure: Figure | None) -> str:
    """A difference of rates in percentage points."""
    return "-" if figure is None else f"{100 * figure.value:z.1f} points"


def _rates(bench: Bench) -> str:
    parts = []
    if bench.tar_alpha is not None:
        parts.append(f"a false accept rate of {one_in(bench.tar_alpha)} for TAR")
    if bench.lift_alpha is not None:
        parts.append(f"{one_in(bench.lift_alpha)} for ASR")
    return " and ".join(parts) or "no false accept rate: nothing was measured"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
