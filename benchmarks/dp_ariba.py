"""ARIBA and differential privacy: does noise hide a backdoor, are noisy honest sites thrown out?

    python benchmarks/dp_ariba.py [--quick] [--privacy none image-8 image-3 site-8]
        [--starts random rendered] [--seeds 0 1 2] [--runs FOLDER] [--output FILE.json]

The demo's attack (model replacement, two of ten sites) under `mean` and `ariba`, with honest sites
that train plainly, by DP-SGD for images, or send clipped and noised updates (unit site, noise at
the site). The malicious sites do not follow the protocol: no clipping, no noise. TPR is the share
of malicious, FPR that of honest client-rounds that were excluded; "clean" has no malicious site.
The start "rendered" is that of dp_utility.py: from random weights the private model learns so
little that there is not much to attack.
"""

import argparse
from typing import Any

from dp_runs import (
    ROOT,
    base,
    main_of,
    over_seeds,
    run_cell,
    started,
    with_epsilon,
    without_privacy,
)

from fedface.config import read_yaml
from fedface.report.tables import Table
from simulations.schema import merge

SITE = {"unit": "site", "delta": 0.01, "clip": 1.0, "noise_at": "site"}
FIGURES = ("tpr", "fpr", "auroc", "asr", "lift", "tar")


def federation(privacy: str) -> dict[str, Any]:
    """Returns the attacked demo with this privacy: ``none`` or ``<unit>-<epsilon>``."""
    content = base("dp/demo_image.yaml")
    content["attack"] = attack()
    if privacy == "none":
        return without_privacy(content)
    unit, _, epsilon = privacy.partition("-")
    if unit == "image":
        return with_epsilon(content, float(epsilon))
    return merge(without_privacy(content), {"privacy": {**SITE, "target_epsilon": float(epsilon)}})


def attack() -> dict[str, Any]:
    """Returns the demo's attack."""
    found: dict[str, Any] = read_yaml(ROOT / "configs" / "demo.yaml")["attack"]
    return found


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Runs every cell that is not complete."""
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for start in options.starts:
        begin = {seed: started(options, "demo", seed, start) for seed in options.seeds}
        for privacy in options.privacy:
            for rule in ("mean", "ariba"):
                for share, state in ((0.0, "clean"), (0.2, "attacked")):
                    cell = f"{start}-{privacy}-{rule}-{state}"
                    overrides = {"aggregator": {"name": rule}, "attack": {"malicious_share": share}}
                    for seed in options.seeds:
                        content = merge(merge(federation(privacy), begin[seed]), overrides)
                        if options.quick and share:
                            content = merge(content, {"attack": {"malicious_share": 0.25}})
                        if share:
                            clean = options.runs / f"{start}-{privacy}-mean-clean" / f"seed-{seed}"
                            content = merge(content, {"evaluation": {"reference": str(clean)}})
                        record = run_cell(content, options.runs, cell, seed, options.quick)
                        about = {"start": start, "privacy": privacy, "rule": rule, "state": state}
                        records.append({**about, **record})
                    found = (over_seeds(records, cell, key) for key in FIGURES)
                    rows.append((start, privacy, rule, state, *found))
    titles = ("TPR", "FPR", "AUROC", "ASR@0.01", "lift@0.01", "TAR@0.01")
    return records, Table(("start", "privacy", "rule", "sites", *titles), tuple(rows))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is this benchmark's own."""
    parser.add_argument(
        "--starts", nargs="+", default=["random", "rendered"], choices=["random", "rendered"]
    )
    parser.add_argument("--privacy", nargs="+", default=["none", "image-8", "image-3", "site-8"])


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    main_of("dp_ariba", __doc__ or "", measure, argv, arguments)


if __name__ == "__main__":
    main()
