"""How many subjects subject-level privacy needs: TAR@FAR=1e-2 by people, rendered, and epsilon.

    python benchmarks/dp_subjects.py [--quick] [--subjects 100 1000 10000] [--epsilons 1 3 8]
        [--seeds 0 1 2] [--runs FOLDER] [--output FILE.json]

Ten sites share the people, eight rendered images each; the same 70 further people set thresholds
and are tested on. Sampling rate and expected batch follow from the nominal people per site, which
is what a federation would agree on beforehand; the steps and rounds are the same for all. All begin
with a backbone that two sites trained for six rounds on 250 rendered people of their own: what
there is to learn is the difference between its column ("untrained") and that without noise.
"""

import argparse
from typing import Any

from dp_runs import base, main_of, over_seeds, run_cell, started, tar_untrained, with_epsilon

from fedface.report.tables import Table
from simulations.schema import merge

N_SITES, N_HELD_OUT, STEPS, ROUNDS = 10, 70, 8, 8

START = (400, 6)
"""Rendered people of the start, 150 of whom only measure it, and its rounds."""


def federation(n_subjects: int) -> dict[str, Any]:
    """Returns the run with so many people in training."""
    per_site = n_subjects / N_SITES
    rate = 0.3 if per_site <= 100 else 0.1
    faces = {
        "name": "renderer",
        "n_identities": n_subjects + N_HELD_OUT,
        "images_per_identity": 8,
        "size": 32,
    }
    return merge(
        base("dp/demo_subject.yaml"),
        {
            "data": {"faces": faces, "split": {"test": 40, "calibration": 30}},
            "federation": {"n_clients": N_SITES, "n_rounds": ROUNDS},
            "privacy": {
                "sample_rate": rate,
                "batch_size": max(1, round(rate * per_site)),
                "n_steps": STEPS,
                "images_per_subject": 4,
                "delta": 1e-4,
            },
            "evaluation": {"every": ROUNDS},
        },
    )


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Runs every cell that is not complete."""
    levels: list[float | None] = [None, *sorted(options.epsilons, reverse=True)]
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    begin = {seed: started(options, "demo", seed, "rendered", *START) for seed in options.seeds}
    for n_subjects in options.subjects:
        untrained = f"subjects-{n_subjects}-untrained"
        for seed in options.seeds:
            tar = tar_untrained(begin[seed], federation(n_subjects), seed, options.quick)
            about = {"n_subjects": n_subjects, "level": "untrained"}
            records.append({**about, "cell": untrained, "seed": seed, "tar": tar})
        row = [f"{n_subjects:,}", over_seeds(records, untrained, "tar")]
        for level in levels:
            cell = f"subjects-{n_subjects}-{'infinity' if level is None else level}"
            for seed in options.seeds:
                content = merge(with_epsilon(federation(n_subjects), level), begin[seed])
                record = run_cell(content, options.runs, cell, seed, options.quick)
                records.append({"n_subjects": n_subjects, "level": level, **record})
            row.append(over_seeds(records, cell, "tar"))
        rows.append(tuple(row))
    titles = [f"epsilon {'infinity' if level is None else level}" for level in levels]
    return records, Table(("subjects in training", "untrained", *titles), tuple(rows))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is this benchmark's own."""
    parser.add_argument("--subjects", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0, 8.0])


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    main_of("dp_subjects", __doc__ or "", measure, argv, arguments)


if __name__ == "__main__":
    main()
