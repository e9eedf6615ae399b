"""What the browser draws a grid's figures from: recorded numbers, as few digits as can be seen.

The page embeds everything once; fedface/report/grid_report.js.j2 draws what is selected. Anomaly
scores are the bulk, so a large grid keeps those of every k-th round only and of the first seed.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from fedface.aggregation.ariba import NO_LAYERS
from fedface.report.bench import CLEAN, Bench
from fedface.report.bench_figures import Figure, Record, by_group, fpr, mean_of, tpr
from fedface.report.recorded import RecordedRun, backdoor_points, measured, operating_points

MAX_SCORES = 300_000
"""Scores of clients that a page holds at most, about two megabytes."""
MAX_LAYER_ROUNDS = 24
"""Rounds that the map of layers by rounds shows at most."""

Place = tuple[str, float]
"""A partition and a malicious share."""
Line = list[tuple[float, float, float, float]]
"""(round, figure, low, high) of a curve."""


def places(bench: Bench) -> list[Place]:
    """Returns the partitions and malicious shares in the records, in their order; without any
    attack the partitions with a share of 0.
    """
    attacked = dict.fromkeys(
        (r["partition"], r["share"]) for r in bench.records if r["attack"] != CLEAN
    )
    return list(attacked or dict.fromkeys((r["partition"], 0.0) for r in bench.records))


def quantities(bench: Bench) -> dict[str, tuple[str, Callable[[Record], Figure | None]]]:
    """Returns key -> (title, figure) of what the heat map shows; all are worse the larger, but
    for the TPR.
    """

    def at(title: str, alpha: float | None) -> str:
        return title if alpha is None else f"{title} at FAR {alpha:g}"

    return {
        "lift": (at("ASR lift", bench.lift_alpha), bench.lift),
        "loss": (at("TAR loss", bench.tar_alpha), bench.tar_loss),
        "fpr": ("honest updates excluded (FPR)", fpr),
        "tpr": ("malicious updates excluded (TPR)", tpr),
        "damage": ("damage, all in all", bench.damage),
    }


def heat_maps(bench: Bench, defences: Sequence[str], attacks: Sequence[str]) -> list[Any]:
    """Returns per place: quantity -> defences x attacks, means over seeds, None where unknown."""
    found = []
    for partition, share in places(bench):
        records = [*bench.select(partition=partition, share=share)]
        records += bench.select(partition=partition, attack=CLEAN)
        cells = by_group(records, "defence", "attack")
        found.append(
            {
                key: [
                    [_value(mean_of([cells.get(f"{d}/{a}", [])], figure)) for a in attacks]
                    for d in defences
                ]
                for key, (_, figure) in quantities(bench).items()
            }
        )
    return found


def stride(n_scores: int) -> int:
    """Returns k: of so many scores, those of every k-th round are few enough for a page."""
    return max(1, ceil(n_scores / MAX_SCORES))


def cell_data(
    runs: Sequence[RecordedRun], tar_alpha: float | None, lift_alpha: float | None, every: int
) -> dict[str, Any]:
    """Returns what a page shows of one cell, ``runs`` being its complete seeds.

    Args:
        runs: At least one.
        tar_alpha: The false accept rate of the TAR curve.
        lift_alpha: That of the ASR curves.
        every: Scores are kept of every so many rounds, and of the last.
    """
    tar, asr = (tar_alpha or 0.0), (lift_alpha or 0.0)
    return {
        "seeds": [run.config["seed"] for run in runs],
        "tar": _curve(runs, lambda e: _ends(operating_points(e).get(tar), "tar")),
        "asr": _curve(runs, lambda e: _ends(backdoor_points(e).get(asr), "asr")),
        "asr_clean": _curve(runs, lambda e: _on_clean(backdoor_points(e).get(asr))),
        "det": _det(runs),
        **_scores(runs[0], every),
        "layers": _layers(runs[0]),
    }


def _curve(
    runs: Sequence[RecordedRun], measure: Callable[[Record], tuple[float, float, float] | None]
) -> Line:
    """Means over seeds in rounds where all were measured, with the lowest and highest seed."""
    seeds = [
        {e["round"]: found for e in run.evaluations if (found := measure(e)) is not None}
        for run in runs
    ]
    line = []
    for server_round in sorted(set.intersection(*(set(seed) for seed in seeds))):
        value, low, high = zip(*(seed[server_round] for seed in seeds), strict=True)
        if len(seeds) > 1:
            low = high = value
        point = (sum(value) / len(value), min(low), max(high))
        line.append((server_round, *(_short(number) for number in point)))
    return line


def _ends(point: Record | None, key: str) -> tuple[float, float, float] | None:
    return None if point is None else (point[key], point["low"], point["high"])


def _on_clean(point: Record | None) -> tuple[float, float, float] | None:
    value = None if point is None else point["asr_on_clean_model"]
    return None if value is None else (value, value, value)


def _det(runs: Sequence[RecordedRun]) -> list[dict[str, float]]:
    """The final models' DET curve, means over the seeds; where none was recorded, its known points.

    A rate of zero is shown as one error in as many comparisons as there were.
    """
    points: dict[float, list[tuple[float, ...]]] = {}
    finals = [final["verification"] for run in runs if (final := measured(run.final)) is not None]
    whole = all(of.get("det") for of in finals)
    for of in finals:
        floor = 1 / of["n_impostor"], 1 / of["n_genuine"]
        known = [(p["alpha"], p["fmr"], 1 - p["tar"]) for p in of["points"]]
        known.append((1.0, of["eer"], of["eer"]))
        curve = [(-fmr, fmr, fnmr) for fmr, fnmr in of.get("det", ())]
        for key, fmr, fnmr in curve if whole else known:
            shown = max(fmr, floor[0]), max(fnmr, floor[1]), fmr, fnmr
            points.setdefault(key, []).append(shown)
    means = {
        key: [_short(sum(values) / len(values)) for values in zip(*found, strict=True)]
        for key, found in sorted(points.items())
    }
    keys = ("x", "y", "fmr", "fnmr")
    return [{"alpha": key, **dict(zip(keys, m, strict=True))} for key, m in means.items()]


def _scores(run: RecordedRun, every: int) -> dict[str, Any]:
    """Clients x rounds: scores (lengths where there are none), and what became of each client.

    A letter per round stands for its fate: ``.`` no valid reply, ``k`` kept, ``p`` pruned.
    """
    kept = _thinned(run.rounds, every)
    scored = any(c["score"] is not None for event in kept for c in event["clients"])
    key = "score" if scored else "norm"
    scores: list[list[float | None]] = [[None] * len(kept) for _ in range(run.n_clients)]
    fates = [["."] * len(kept) for _ in range(run.n_clients)]
    for column, event in enumerate(kept):
        for client in event["clients"]:
            scores[client["client"]][column] = _short(client[key])
            fates[client["client"]][column] = "p" if client["pruned"] else "k"
    return {
        "rounds": [event["round"] for event in kept],
        "attack": [int(bool(event["attack"])) for event in kept],
        "malicious": list(run.malicious),
        "scored": scored,
        "scores": scores,
        "fates": ["".join(row) for row in fates],
    }


def _layers(run: RecordedRun) -> dict[str, Any] | None:
    """Layer scores: clients x layers averaged over rounds, and layers x rounds how far malicious
    clients stand out from honest ones; None where the rule has no layer scores.
    """
    sums: dict[str, dict[int, list[float]]] = {}
    for event in run.rounds:
        for client in event["clients"]:
            for name, value in client["layer_scores"].items():
                if name not in NO_LAYERS and value is not None:
                    sums.setdefault(name, {}).setdefault(client["client"], []).append(value)
    if not sums:
        return None
    shown = _thinned(run.rounds, ceil(len(run.rounds) / MAX_LAYER_ROUNDS))
    return {
        "names": list(sums),
        "clients": [
            [_short(_mean(by_client.get(c, ()))) for by_client in sums.values()]
            for c in range(run.n_clients)
        ],
        "rounds": [event["round"] for event in shown],
        "gap": [[_short(_gap(event, name)) for event in shown] for name in sums],
    }


def _gap(event: Record, layer: str) -> float | None:
    """The mean layer score of the malicious clients less that of the honest ones."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for client in event["clients"]:
        value = client["layer_scores"].get(layer)
        if value is not None:
            found[client["malicious"]].append(value)
    malicious, honest = _mean(found[True]), _mean(found[False])
    return None if malicious is None or honest is None else malicious - honest


def _thinned(rounds: Sequence[Record], every: int) -> list[Record]:
    """The last round and every so many before it."""
    return list(reversed(rounds[::-1][::every]))


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else _short(figure.value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _short(value: Any) -> Any:
    """Three significant digits: what a hover shows, at half of the file's size."""
    if value is None:
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short
