"""What a comparison grid says in words: which defence to use, what it costs and where it fails."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedface.report.bench import CLEAN, Bench, Rank
from fedface.report.grid_overview import FAILS, Overview, case, points
from fedface.report.sentences import one_in, percent

HARMLESS = 0.05
"""Attacks teach nothing about defences if without any their lift stays below this, and the TAR loss
below :data:`fedface.report.grid_overview.FAILS`."""
MAX_NAMED = 6


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
        f"With {best.defence} attacks gain a mean ASR lift of {points(best.lift)}, at worst "
        f"{points(best.lift_worst.figure)}, under {case(bench, best.lift_worst.where)}."
    )


def _harmless(undefended: Overview) -> bool:
    harms = ((undefended.lift_worst, HARMLESS), (undefended.tar_loss_worst, FAILS))
    return all(harm is None or harm.figure.value < limit for harm, limit in harms)


def _undefended(overview: Overview) -> str:
    """What attacks gain where nothing defends, or cost where they have no trigger."""
    without = f"With {overview.defence}, which is no defence, attacks"
    if (lift := overview.lift_worst) is not None:
        mean = points(overview.lift)
        return f"{without} gain a mean ASR lift of {mean}, at worst {points(lift.figure)}."
    if (loss := overview.tar_loss_worst) is not None:
        mean = points(overview.tar_loss)
        return f"{without} cost {mean} of TAR on average, at worst {points(loss.figure)}."
    return ""


def _price(best: Overview, reference: str) -> str:
    """What the defence costs: recognition, honest updates and time."""
    parts = []
    if best.clean_tar_loss is not None and best.defence != reference:
        parts.append(f"{points(best.clean_tar_loss)} of TAR when nobody attacks")
    if best.tar_loss is not None:
        parts.append(f"{points(best.tar_loss)} of TAR under attack")
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


def _rates(bench: Bench) -> str:
    parts = []
    if bench.tar_alpha is not None:
        parts.append(f"a false accept rate of {one_in(bench.tar_alpha)} for TAR")
    if bench.lift_alpha is not None:
        parts.append(f"{one_in(bench.lift_alpha)} for ASR")
    return " and ".join(parts) or "no false accept rate: nothing was measured"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
