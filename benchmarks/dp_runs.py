"""Runs of the DP benchmarks: one run folder per cell, done cells are not done again."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measuring import describe_machine, figure, write_json
from rich.console import Console

from fedface.config import parse_config, read_yaml
from fedface.report.tables import Table
from simulations.build import build_backbone, build_data
from simulations.evaluation import evaluate_global
from simulations.execution import run_single
from simulations.schema import RunConfig, merge

ROOT = Path(__file__).parents[1]
ALPHA = 1e-2
"""The false accept rate of all tables."""

QUICK: dict[str, Any] = {
    "data": {
        "faces": {"name": "renderer", "n_identities": 40, "images_per_identity": 6, "size": 16},
        "split": {"test": 10, "calibration": 10},
    },
    "model": {"backbone": {"widths": [4, 4, 8, 8], "embedding_size": 16}},
    "federation": {"n_clients": 4, "n_rounds": 2},
    "evaluation": {"n_bootstrap": 40},
}
"""What makes any cell a matter of seconds: a smoke test, no measurement."""

N_RENDERED, RENDERED_ROUNDS = 1000, 20
"""People and rounds of the rendered start."""

PLAIN_TRAINING = {"batch_size": 32, "optimizer": {"learning_rate": 0.05, "momentum": 0.9}}
CLIPPED_TRAINING = {"optimizer": {"learning_rate": 1.0, "momentum": 0.9}}
"""How cells without privacy and without noise train, as in the variants of configs/dp."""


def base(config: str) -> dict[str, Any]:
    """Returns the content of a file below ``configs`` as a single run."""
    content = read_yaml(ROOT / "configs" / config)
    content.pop("compare", None)
    return merge(content, {"engine": {"name": "in_process"}})


def with_epsilon(content: Mapping[str, Any], epsilon: float | None) -> dict[str, Any]:
    """Returns ``content`` at this epsilon of its unit; None clips alike and adds no noise."""
    chosen: dict[str, Any] = {"target_epsilon": epsilon}
    if epsilon is None:
        chosen["noise_multiplier"] = 0.0
        content = merge(content, {"training": CLIPPED_TRAINING})
    return merge(content, {"privacy": chosen})


def without_privacy(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``content`` without differential privacy, trained as such sites are."""
    return merge(content, {"privacy": None, "training": PLAIN_TRAINING})


def run_cell(
    content: Mapping[str, Any], output: Path, name: str, seed: int, quick: bool
) -> dict[str, Any]:
    """Runs one cell in ``output/name/seed-<seed>``, or reads what it gave; returns its figures.

    Raises:
        ConfigError: If the cell is no valid run.
        RunFolderError: If its folder holds another run.
    """
    merged = merge(content, QUICK) if quick else dict(content)
    merged |= {"name": f"seed-{seed}", "seed": seed, "output": str(output / name)}
    config = parse_config(merged, RunConfig, name)
    console = Console()
    console.print(f"{name} seed {seed}", highlight=False, markup=False)
    return {"cell": name, "seed": seed, **figures(run_single(config, console, name, resume=True))}


def started(
    options: argparse.Namespace,
    data: str,
    seed: int,
    start: str,
    n_people: int = N_RENDERED,
    n_rounds: int = RENDERED_ROUNDS,
) -> dict[str, Any]:
    """Returns what makes a run start so: ``random``, or ``rendered``, trained now if need be.

    Args:
        options: Where runs go.
        data: Whose configuration names the backbone.
        seed: Of the run.
        start: ``random`` or ``rendered``.
        n_people: Rendered people, 150 of whom only measure the start.
        n_rounds: Rounds that two sites train on the others.
    """
    if start == "random":
        return {}
    content = without_privacy(base(f"dp/{data}_image.yaml"))
    faces = {
        "name": "renderer",
        "n_identities": n_people,
        "images_per_identity": 12,
        "size": content["data"]["faces"]["size"],
        "seed": 1000,
    }
    content["data"] = {"faces": faces, "split": {"test": 100, "calibration": 50}}
    content["federation"] = {"n_clients": 2, "n_rounds": n_rounds}
    content["evaluation"] = {"every": n_rounds}
    run_cell(content, options.runs, f"{data}-start", seed, options.quick)
    folder = options.runs / f"{data}-start" / f"seed-{seed}"
    return {"model": {"start": str(folder.absolute())}}


def tar_untrained(
    begin: Mapping[str, Any], content: Mapping[str, Any], seed: int, quick: bool
) -> float | None:
    """Returns the TAR of a start as it is, on the people of the cells that begin with it."""
    merged = merge(without_privacy(content), begin)
    merged = {**(merge(merged, QUICK) if quick else merged), "name": "untrained", "seed": seed}
    config = parse_config(merged, RunConfig, "untrained")
    data = build_data(config)
    backbone = build_backbone(config, data.train.images.shape[1])
    found = evaluate_global(config, data, backbone, torch.device("cpu"), 0)
    return _at([(p["alpha"], p["tar"]) for p in found["verification"]["points"]])


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the tables show of a run's result."""
    evaluation = result["evaluation"] or {}
    points = evaluation.get("verification", {}).get("points", [])
    backdoor = (evaluation.get("backdoor") or {"recalibrated": []})["recalibrated"]
    detection = result["detection"] or {}
    privacy = result.get("privacy") or {}
    return {
        "tar": _at([(p["alpha"], p["tar"]) for p in points]),
        "eer": evaluation.get("verification", {}).get("eer"),
        "asr": _at([(p["alpha"], p["asr"]) for p in backdoor]),
        "lift": _at([(p["alpha"], p["lift"]) for p in backdoor]),
        "tpr": detection.get("tpr"),
        "fpr": detection.get("fpr"),
        "auroc": detection.get("auroc"),
        "epsilon": privacy.get("epsilon"),
        "noise_multiplier": privacy.get("per_round", {}).get("noise_multiplier"),
        "n_rounds": result["n_rounds"],
        "seconds": result["seconds"],
    }


def _at(points: list[tuple[float, float | None]]) -> float | None:
    return next((value for alpha, value in points if abs(alpha - ALPHA) < 1e-12), None)


def over_seeds(records: list[dict[str, Any]], cell: str, key: str) -> str:
    """Returns the mean of a figure over a cell's seeds with the lowest and highest."""
    values = [r[key] for r in records if r["cell"] == cell and r[key] is not None]
    if not values:
        return "-"
    spread = f" ({figure(min(values))} to {figure(max(values))})" if len(values) > 1 else ""
    return figure(mean(values)) + spread


def main_of(
    name: str,
    description: str,
    measure: Callable[[argparse.Namespace], tuple[list[dict[str, Any]], Table]],
    argv: list[str] | None,
    more: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Reads the arguments, measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings: a smoke test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="where run folders go; kept, so that it resumes")
    parser.add_argument("--output", type=Path, help="the JSON file")
    more(parser)
    options = parser.parse_args(argv)
    quick = "-quick" if options.quick else ""
    options.runs = options.runs or Path("runs") / f"{name}{quick}"
    options.output = options.output or options.runs / f"{name}.json"
    machine = describe_machine()
    records, table = measure(options)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(options.output, name, machine, settings, {"cells": records})
    console = Console()
    console.print(table.markdown(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {options.output}", markup=False, highlight=False, soft_wrap=True)
