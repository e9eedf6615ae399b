"""What differential privacy costs in recognition: TAR@FAR=1e-2 by epsilon, unit, data and start.

    python benchmarks/dp_utility.py [--quick] [--data demo lfw] [--units image subject]
        [--starts random rendered] [--epsilons 1 3 8] [--seeds 0 1 2] [--runs FOLDER]
        [--output FILE.json]

The federations of configs/dp, one run folder per cell: an interrupted benchmark goes on where it
was. "infinity" clips and samples alike without noise; "none" is plain federated averaging;
"untrained" is the start as it is. The start "rendered" is a backbone that two sites trained without
privacy on rendered people (others than the demo's), which costs no privacy of anybody.
"""

import argparse
from typing import Any

from dp_runs import (
    base,
    main_of,
    over_seeds,
    run_cell,
    started,
    tar_untrained,
    with_epsilon,
    without_privacy,
)

from fedface.report.tables import Table
from simulations.schema import merge


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Runs every cell that is not complete."""
    levels: list[Any] = ["none", None, *sorted(options.epsilons, reverse=True)]
    records: list[dict[str, Any]] = []
    rows: dict[str, list[str]] = {}
    for data in options.data:
        for start in options.starts:
            begin = {seed: started(options, data, seed, start) for seed in options.seeds}
            for unit in options.units:
                for seed in options.seeds:
                    tar = tar_untrained(
                        begin[seed], base(f"dp/{data}_{unit}.yaml"), seed, options.quick
                    )
                    cell = f"{data}-{unit}-{start}-untrained"
                    about = {"data": data, "unit": unit, "start": start, "level": "untrained"}
                    records.append({**about, "cell": cell, "seed": seed, "tar": tar})
                name = f"{data}, {unit}, {start} start"
                rows[name] = [over_seeds(records, cell, "tar")]
                for level in levels:
                    cell = f"{data}-{unit}-{start}-{'infinity' if level is None else level}"
                    for seed in options.seeds:
                        content = base(f"dp/{data}_{unit}.yaml")
                        content = (
                            without_privacy(content)
                            if level == "none"
                            else with_epsilon(content, level)
                        )
                        content = merge(content, begin[seed])
                        record = run_cell(content, options.runs, cell, seed, options.quick)
                        about = {"data": data, "unit": unit, "start": start, "level": level}
                        records.append({**about, **record})
                    rows[name].append(over_seeds(records, cell, "tar"))
    titles = [f"epsilon {'infinity' if level is None else level}" for level in levels[1:]]
    columns = ("TAR@FAR=0.01", "untrained", "no privacy", *titles)
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
