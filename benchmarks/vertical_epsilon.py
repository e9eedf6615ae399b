"""Accuracy of a vertical federation against epsilon: VFL-AFE, its baselines and the ceiling.

    python benchmarks/vertical_epsilon.py [CONFIG.yaml] [--epsilons 1 2 4 8 16] [--seeds 0 1 2]
        [--arms ARMS.yaml] [--smoke] [--output FOLDER]

Every (arm, epsilon, seed) is a vertical run of its own below FOLDER, so a table that was stopped
goes on where it was; FOLDER gets vertical_epsilon.json, .md and .svg. Accuracy is that of naming
the right one of the enrolled on records that nobody trained on, each from one released embedding.
The active party alone is 1 / n people where it has labels alone, else a run without parties. The
ceiling is :func:`fedface.vertical.ceiling.utility_ceiling` at that accuracy. *Closed* is the share
of the gap between clip and noise and the ceiling (or unprotected, if lower) that an arm closes;
*p* how likely so many right decisions are at the ceiling: tiny means that the accounting is wrong.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from measuring import describe_machine
from rich.console import Console
from svg_chart import chart

from fedface.config import ConfigError, parse_config, read_yaml
from fedface.privacy import EmbeddingRelease
from fedface.report.run_folder import RunFolder, write_atomically
from fedface.report.tables import MISSING, Table
from fedface.vertical.ceiling import crossing_p_value, utility_ceiling
from simulations.schema import merge
from simulations.vertical_execution import run_single_vertical
from simulations.vertical_schema import VerticalConfig

CONFIG = Path(__file__).with_suffix(".yaml")
ALONE, UNPROTECTED, CEILING = "active party alone", "unprotected", "ceiling"
UNCLIPPED = "noise without clip"

Result = dict[str, Any]
"""``arm``, ``epsilon`` (None without noise), ``seed``; then ``accuracy``, ``n_right``, ``n``,
``n_people``, ``sigma_per_clip`` and what the party says that it ``spent``, or ``error``."""


def slug(text: str) -> str:
    """Returns ``text`` as a folder's name."""
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def releases(content: Mapping[str, Any], epsilon: float) -> EmbeddingRelease:
    """Returns the Gaussian release of the base at ``epsilon``."""
    release = {**content["base"]["passive"]["release"], "epsilon": epsilon, "sigma": None}
    return parse_config(release, EmbeddingRelease, "base.passive.release")


def cases(
    content: Mapping[str, Any], epsilons: Sequence[float], seeds: Sequence[int]
) -> list[tuple[str, float | None, int, dict[str, Any]]]:
    """Returns (arm, epsilon, seed, overrides of the base) of every run, in order."""
    found: list[tuple[str, float | None, int, dict[str, Any]]] = []
    own_view = content["base"]["parties"]["active"] is not None
    for seed in seeds:
        if own_view:
            found.append((ALONE, None, seed, {"parties": {"passive": []}}))
        found.append((UNPROTECTED, None, seed, content["unprotected"]))
        for epsilon in epsilons:
            at = {"passive": {"release": {"epsilon": epsilon}}}
            found += [(arm, epsilon, seed, merge(o, at)) for arm, o in content["arms"].items()]
            if content.get("unclipped") is not None:
                bare = {"name": "unclipped_noise", "sigma": releases(content, epsilon).noise}
                overrides = merge({"passive": {"release": bare}}, content["unclipped"])
                found.append((UNCLIPPED, epsilon, seed, overrides))
    return found


def config_of(
    content: Mapping[str, Any],
    folder: Path,
    case: tuple[str, float | None, int, dict[str, Any]],
) -> VerticalConfig:
    """Returns the run of one case, in a folder of its own."""
    arm, epsilon, seed, overrides = case
    place = folder / slug(arm) / ("none" if epsilon is None else f"epsilon-{epsilon:g}")
    merged = merge(content["base"], overrides)
    merged |= {"name": f"seed-{seed}", "seed": seed, "output": str(place)}
    return parse_config(merged, VerticalConfig, f"{arm} at epsilon {epsilon}")


def measured(
    case: tuple[str, float | None, int, dict[str, Any]], result: Mapping[str, Any]
) -> Result:
    """Returns the figures of one finished run.

    Raises:
        ValueError: If the run measured nobody enrolled.
    """
    enrolled = (result["evaluation"] or {}).get("enrolled")
    if enrolled is None:
        raise ValueError(
            "the table needs data.split.enrolled_test > 0 and a model that is measured"
        )
    facts = {name: enrolled[name] for name in ("accuracy", "n_right", "n", "n_people")}
    return {
        "arm": case[0],
        "epsilon": case[1],
        "seed": case[2],
        **facts,
        "sigma_per_clip": result["noise_per_clip"],
        "spent": result["spent"],
    }


def of(results: Sequence[Result], arm: str, epsilon: float | None) -> list[Result]:
    """Returns the runs of one arm at one epsilon that came to their end."""
    return [r for r in results if r["arm"] == arm and r["epsilon"] == epsilon and "accuracy" in r]


def judged(
    runs: Sequence[Result], base: float, target: float, ceiling: float
) -> dict[str, float | None]:
    """Returns an arm's accuracy over its seeds, what it closes of base..target, and p."""
    accuracies = [r["accuracy"] for r in runs]
    n_right, n = (sum(r[name] for r in runs) for name in ("n_right", "n"))
    return {
        "accuracy": mean(accuracies),
        "low": min(accuracies),
        "high": max(accuracies),
        "closed": (mean(accuracies) - base) / (target - base) if target > base else None,
        "p_at_ceiling": crossing_p_value(n_right, n, ceiling),
    }


def summary(
    content: Mapping[str, Any], results: Sequence[Result], epsilons: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns per epsilon: the accuracies, the ceiling, what each arm closes and whether it may."""
    alone_runs, open_runs = of(results, ALONE, None), of(results, UNPROTECTED, None)
    n_people = max(r["n_people"] for r in results if "accuracy" in r)
    alone = mean(r["accuracy"] for r in alone_runs) if alone_runs else 1 / n_people
    unprotected = mean(r["accuracy"] for r in open_runs)
    arms = list(content["arms"])
    rows = []
    for epsilon in epsilons:
        release = releases(content, epsilon)
        ceiling = utility_ceiling(release.clip, release.noise, alone, release.n_parties)
        target = min(ceiling, unprotected)
        base = mean(r["accuracy"] for r in of(results, arms[0], epsilon))
        row: dict[str, Any] = {
            "epsilon": epsilon,
            "sigma_per_clip": release.noise / release.clip,
            ALONE: alone,
            UNPROTECTED: unprotected,
            CEILING: ceiling,
            "arms": {},
        }
        extra = [] if content.get("unclipped") is None else [UNCLIPPED]
        for arm in (*arms, *extra):
            runs = of(results, arm, epsilon)
            row["arms"][arm] = judged(runs, base, target, ceiling) if runs else None
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns one row per epsilon: mean (lowest..highest seed) of each arm, lines and ceiling."""
    arms = list(rows[0]["arms"])
    guaranteed = [arm for arm in arms if arm != UNCLIPPED]
    columns = (
        *("epsilon", "sigma / C", ALONE, *arms, CEILING, UNPROTECTED),
        *(f"closed by {arm}" for arm in guaranteed[1:]),
        *(f"p, {arm}" for arm in guaranteed),
    )
    body = []
    for row in rows:
        found = row["arms"]
        closed = [_of(found[arm], "closed") for arm in guaranteed[1:]]
        body.append(
            (
                f"{row['epsilon']:g}",
                f"{row['sigma_per_clip']:.2f}",
                f"{row[ALONE]:.3f}",
                *(_seeds(found[arm]) for arm in arms),
                f"{row[CEILING]:.3f}",
                f"{row[UNPROTECTED]:.3f}",
                *(MISSING if share is None else f"{100 * share:.0f} %" for share in closed),
                *(
                    MISSING if (p := _of(found[arm], "p_at_ceiling")) is None else f"{p:.2g}"
                    for arm in guaranteed
                ),
            )
        )
    return Table(columns, tuple(body))


def _of(arm: Mapping[str, float | None] | None, name: str) -> float | None:
    return None if arm is None else arm[name]


def _seeds(arm: Mapping[str, float | None] | None) -> str:
    if arm is None:
        return "diverged"
    return f"{arm['accuracy']:.3f} ({arm['low']:.3f}..{arm['high']:.3f})"


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the SVG: a curve per arm, the ceiling and the two horizontal lines."""
    series: dict[str, list[tuple[float, float]]] = {
        arm: [(row["epsilon"], row["arms"][arm]["accuracy"]) for row in rows if row["arms"][arm]]
        for arm in rows[0]["arms"]
    }
    for line in (CEILING, UNPROTECTED, ALONE):
        series[line] = [(row["epsilon"], row[line]) for row in rows]
    return chart(
        "Naming an enrolled person from one released embedding",
        "epsilon (replace-one, delta 1e-5)",
        "accuracy",
        series,
    )


def write(
    folder: Path,
    machine: Mapping[str, Any],
    content: Mapping[str, Any],
    results: Sequence[Result],
    epsilons: Sequence[float],
) -> str:
    """Writes JSON, table and figure into ``folder``; returns the table."""
    rows = summary(content, results, epsilons)
    text = table(rows).markdown()
    facts = {
        "benchmark": "vertical_epsilon",
        **machine,
        "settings": dict(content),
        "results": list(results),
        "summary": rows,
    }
    write_atomically(folder / "vertical_epsilon.json", json.dumps(facts, indent=2, allow_nan=False))
    write_atomically(folder / "vertical_epsilon.md", text)
    write_atomically(folder / "vertical_epsilon.svg", figure(rows))
    return text


SMOKE = {
    "data": {
        "faces": {"n_identities": 6, "images_per_identity": 16},
        "public": {"n_identities": 4, "images_per_identity": 4},
        "split": {"test": 2, "calibration": 2},
    },
    "training": {"pretraining": {"epochs": 1}},
}
"""So small that nothing is learnt: to see that all of it runs."""


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", type=Path, help="other arms, such as vertical_ablation.yaml")
    parser.add_argument("--smoke", action="store_true", help="two people, one seed, two epsilons")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/vertical_epsilon"))
    options = parser.parse_args(arguments)
    content = read_yaml(options.config)
    if options.arms is not None:
        content = {**content, **read_yaml(options.arms), "unclipped": None}
    if options.smoke:
        content = {**content, "base": merge(content["base"], SMOKE)}
        options.epsilons, options.seeds = options.epsilons[:2], options.seeds[:1]
    console, machine = Console(stderr=True), describe_machine()
    options.output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    every = cases(content, options.epsilons, options.seeds)
    configs = [config_of(content, options.output, case) for case in every]  # all checked first
    for number, (case, config) in enumerate(zip(every, configs, strict=True), 1):
        name = f"{number}/{len(every)} {case[0]} epsilon {case[1]} seed {case[2]}"
        resume = RunFolder(config.folder).exists()
        try:
            found = run_single_vertical(config, Console(quiet=True), name, resume)
            results.append(measured(case, found))
            console.print(f"{name}: accuracy {results[-1]['accuracy']:.3f}", highlight=False)
        except ConfigError:
            raise
        except ValueError as error:  # training diverged: a fact of this arm
            results.append(
                {
                    **dict(zip(("arm", "epsilon", "seed"), case[:3], strict=True)),
                    "error": str(error),
                }
            )
            console.print(f"{name}: {error}", highlight=False)
    sys.stdout.write(write(options.output, machine, content, results, options.epsilons))
    console.print(f"figures: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
