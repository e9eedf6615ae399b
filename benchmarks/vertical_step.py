"""What a vertical step costs over an engine, against the same step in one process.

    python benchmarks/vertical_step.py [--quick] [--engines resident flower in_process]
        [--parties 1 2] [--batch 64] [--steps-per-message 1] [--active-at server]
        [--output FILE.json]

A step is one mini-batch of the whole protocol: every passive party embeds, clips and noises, the
active party trains and returns gradients, every passive party steps. The base is a plain loop over
the same parties (:class:`fedface.vertical.PassiveParty`, :class:`fedface.vertical.ActiveParty`) in
one process and one thread, without messages, states or files. Views are random pictures; one round
to warm up, then the median round's seconds divided by its steps. Each case has a fresh process.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from measuring import answer, describe_machine, run_case, write_json
from rich.console import Console
from torch import Tensor

from fedface.config import parse_config
from fedface.data.tensors import to_float
from fedface.random import stream
from fedface.report.run_folder import RunFolder
from fedface.report.tables import Table
from fedface.training.local import batches

ENGINES = ("plain_loop", "in_process", "resident", "flower")
LIMIT = 3.0
"""The most that a step over Ray may cost, in steps of the plain loop."""


def content(case: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Returns the vertical run that is measured: rendered faces, as many views as parties."""
    views = ["top_left", "top_right", "bottom_left", "bottom_right"]
    n_parties = case["n_parties"]
    engine: dict[str, Any] = {"name": case["engine"]}
    if case["engine"] in ("resident", "flower"):
        engine["num_cpus"] = case["n_workers"]
    return {
        "kind": "vertical",
        "name": "step",
        "data": {
            "faces": {
                "name": "renderer",
                "n_identities": case["n_people"],
                "images_per_identity": 20,
                "size": case["size"],
            },
            "views": {"name": "quadrants", "size": case["size"]},
            "split": {"test": 4, "calibration": 4},
        },
        "parties": {"active": views[0], "passive": views[1 : 1 + n_parties]},
        "passive": {
            "backbone": {"name": "small_conv", "embedding_size": 32},
            "release": {
                "name": "gaussian",
                "sigma": 1.0,
                "n_releases": 1000,
                "n_parties": n_parties,
            },
            "optimizer": {"learning_rate": 0.01},
        },
        "active": {
            "at": case["active_at"],
            "backbone": {"name": "small_conv", "embedding_size": 32},
            "optimizer": {"learning_rate": 0.01},
        },
        "training": {
            "n_rounds": case["n_rounds"],
            "batch_size": case["batch"],
            "steps_per_message": case["steps_per_message"],
        },
        "evaluation": {"n_bootstrap": 40},
        "engine": engine if case["engine"] != "plain_loop" else {"name": "in_process"},
        "output": str(output),
    }


def over_messages(case: Mapping[str, Any]) -> list[float]:
    """Returns the seconds per step of each round of a run over the case's engine."""
    from simulations.vertical_execution import run_single_vertical
    from simulations.vertical_schema import VerticalConfig

    with TemporaryDirectory() as folder:
        config = parse_config(content(case, Path(folder)), VerticalConfig, "benchmark")
        with config.engine.ready():
            run_single_vertical(config, Console(quiet=True), "step")
        events = RunFolder(config.folder).events("round")
    if refused := [event["refused"] for event in events if event["refused"]]:
        raise RuntimeError(f"parties were refused: {refused[0]}")
    return [event["training_seconds"] / event["n_steps"] for event in events]


def plain_loop(case: Mapping[str, Any]) -> list[float]:
    """Returns the seconds per step of each round of the same training without messages."""
    from simulations.vertical_build import TRAIN, build_active, build_records
    from simulations.vertical_schema import VerticalConfig

    config = parse_config(content(case, Path()), VerticalConfig, "benchmark")
    records = build_records(config)
    train = torch.from_numpy((records.groups == TRAIN).nonzero()[0])
    active = build_active(config, records, len(records), torch.device("cpu"))
    views = [records.views[view] for view in config.parties.passive]
    passives = [
        config.passive.build(records.image_size, len(records), stream(0, "passive", k))
        for k in range(len(views))
    ]
    own_views = records.views[config.parties.active or ""]
    labels = torch.from_numpy(records.identities)
    noise = [stream(0, "noise", k) for k in range(len(views))]

    def step(chosen: Tensor) -> None:
        z = [
            party.embed(to_float(view[chosen.numpy()]), chosen, rng)
            for party, view, rng in zip(passives, views, noise, strict=True)
        ]
        own = to_float(own_views[chosen.numpy()])
        result = active.step(own, z, labels[chosen], chosen)
        for party, gradient in zip(passives, result.gradients, strict=True):
            if gradient is not None:
                party.backward(gradient)

    seconds = []
    for number in range(case["n_rounds"]):
        order = list(batches(len(train), case["batch"], stream(0, "order", number)))
        start = perf_counter()
        for index in order:
            step(train[index])
        seconds.append((perf_counter() - start) / len(order))
    return seconds


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a case's figures; runs in the case's own process."""
    torch.set_num_threads(1)
    per_round = (plain_loop if case["engine"] == "plain_loop" else over_messages)(case)
    later = per_round[1:]
    return {"step_seconds": median(later), "first_step_seconds": per_round[0], "rounds": per_round}


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns every measured case with its cost in steps of the plain loop of as many parties."""
    base = {
        r["n_parties"]: r["step_seconds"]
        for r in results
        if r["engine"] == "plain_loop" and "step_seconds" in r
    }
    return [
        {
            "engine": r["engine"],
            "n_parties": r["n_parties"],
            "steps_per_message": r["steps_per_message"],
            "ratio": r["step_seconds"] / base[r["n_parties"]],
        }
        for r in results
        if "step_seconds" in r and r["n_parties"] in base
    ]


def table(results: list[dict[str, Any]]) -> Table:
    """Returns one row per case: milliseconds of a step, and how many plain steps that is."""
    found = {
        (r["engine"], r["n_parties"], r["steps_per_message"]): r["ratio"] for r in ratios(results)
    }
    rows = []
    for r in results:
        key = (r["engine"], r["n_parties"], r["steps_per_message"])
        measured = "step_seconds" in r
        ratio = found.get(key)
        rows.append(
            (
                r["engine"],
                str(r["n_parties"]),
                str(r["steps_per_message"]),
                f"{1e3 * r['step_seconds']:.1f}" if measured else r.get("error", "-"),
                "-" if ratio is None else f"{ratio:.2f}",
            )
        )
    columns = ("engine", "passive parties", "steps per message", "ms / step", "/ plain loop")
    return Table(columns, tuple(rows))


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what is to be measured, in order."""
    return [
        {
            "engine": engine,
            "n_parties": n_parties,
            "steps_per_message": steps,
            "batch": options.batch,
            "size": options.size,
            "n_people": options.people,
            "n_rounds": options.rounds,
            "n_workers": options.workers,
            "active_at": options.active_at,
        }
        for n_parties in options.parties
        for engine in ("plain_loop", *options.engines)
        for steps in ([1] if engine == "plain_loop" else options.steps_per_message)
    ]


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few people, one party, two engines")
    parser.add_argument("--engines", nargs="+", choices=ENGINES[1:], default=list(ENGINES[1:]))
    parser.add_argument("--parties", type=int, nargs="+", default=[1, 2], choices=[1, 2, 3])
    parser.add_argument("--steps-per-message", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--active-at", choices=["server", "client"], default="server")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--people", type=int, default=72, help="20 pictures each, eight held out")
    parser.add_argument("--rounds", type=int, default=6, help="the first warms up")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one case")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/vertical_step.json"))
    options = parser.parse_args(arguments)
    if options.case is not None:
        answer(measure(options.case))
        return
    if options.quick:
        options.parties, options.steps_per_message = [1], [1]
        options.engines, options.people, options.rounds = ["in_process", "resident"], 24, 3
    machine, results = describe_machine(), []
    console = Console(stderr=True)
    for case in cases(options):
        with console.status(f"{case['engine']} {case['n_parties']} parties"):
            results.append(run_case(Path(__file__), case, timeout=options.timeout))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    found = ratios(results)
    over = [r for r in found if r["engine"] == "resident" and r["ratio"] > LIMIT]
    figures = {"results": results, "ratios": found, "limit": LIMIT, "over_limit": over}
    write_json(options.output, "vertical_step", machine, settings, figures)
    sys.stdout.write(table(results).markdown())
    console.print(f"figures: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
