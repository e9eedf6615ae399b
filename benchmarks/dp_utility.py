"""What differential privacy costs in recognition: TAR@FAR=1e-2 by epsilon, unit, data and start.

    python benchmarks/dp_utility.py [--quick] [--data demo lfw] [--units image subject]
        [--starts random rendered] [--epsilons 1 3 8] [--seeds 0 1 2] [--runs FOLDER]
        [--output FILE.json]

The federations of configs/dp, one run folder per cell: an interrupted benchmark goes on where it
was. "infinity" clips and samples alike without noise; "none" is plain federated averaging. The
start "rendered" is a backbone that two sites trained without privacy on rendered people (others
than the demo's), which costs no privacy of anybody.
"""

import argparse
from typing import Any

from dp_runs import base, main_of, over_seeds, run_cell, with_epsilon, without_privacy

from fedface.report.tables import Table
from simulations.schema import merge

N_RENDERED, ROUNDS = 1000, 20


def started(options: argparse.Namespace, data: str, seed: int) -> str:
    """Trains the rendered start of a seed, or finds it; returns its run folder."""
    content = without_privacy(base(f"dp/{data}_image.yaml"))
    faces = {
        "name": "renderer",
        "n_identities": N_RENDERED,
        "images_per_identity": 12,
        "size": content["data"]["faces"]["size"],
        "seed": 1000,
    }
    content["data"] = {"faces": faces, "split": {"test": 100, "calibration": 50}}
    content["federation"] = {"n_clients": 2, "n_rounds": ROUNDS}
    content["evaluation"] = {"every": ROUNDS}
    run_cell(content, options.runs, f"{data}-start", seed, options.quick)
    return str((options.runs / f"{data}-start" / f"seed-{seed}").absolute())


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Runs every cell that is not complete."""
    levels: list[Any] = ["none", None, *sorted(options.epsilons, reverse=True)]
    records: list[dict[str, Any]] = []
    rows: dict[str, list[str]] = {}
    for data in options.data:
        for start in options.starts:
            for unit in options.units:
                for level in levels:
                    cell = f"{data}-{unit}-{start}-{'infinity' if level is None else level}"
                    for seed in options.seeds:
                        content = base(f"dp/{data}_{unit}.yaml")
                        content = (
                            without_privacy(content)
                            if level == "none"
                            else with_epsilon(content, level)
                        )
                        if start == "rendered":
                            begin = {"model": {"start": started(options, data, seed)}}
                            content = merge(content, begin)
                        record = run_cell(content, options.runs, cell, seed, options.quick)
                        about = {"data": data, "unit": unit, "start": start, "level": level}
                        records.append({**about, **record})
                    row = rows.setdefault(f"{data}, {unit}, {start} start", [])
                    row.append(over_seeds(records, cell, "tar"))
    titles = [f"epsilon {'infinity' if level is None else level}" for level in levels[1:]]
    columns = ("TAR@FAR=0.01", "no privacy", *titles)
    return records, Table(columns, tuple((name, *cells) for name, cells in rows.items()))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is this benchmark's own."""
    parser.add_argument("--data", nargs="+", default=["demo", "lfw"], choices=["demo", "lfw"])
    parser.add_argument(
        "--units", nargs="+", default=["image", "subject"], choices=["image", "subject"]
    )
    parser.add_argument(
        "--starts", nargs="+", default=["random", "rendered"], choices=["random", "rendered"]
    )
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0, 8.0])


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    main_of("dp_utility", __doc__ or "", measure, argv, arguments)


if __name__ == "__main__":
    main()
