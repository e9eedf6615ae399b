"""Does a person who withdrew leave a trace? Membership tests before and after what is commanded.

    python benchmarks/withdrawal.py [--quick] [--seeds 0 1 2 3 4 5] [--people 2]
        [--runs FOLDER] [--output FILE.json]

For each seed a federation of four sites is trained on rendered people, two sites a round. Then
people withdraw by the functions behind `fedface site withdraw`: some of a site that was in round 1,
some of the site that came last. What the verdict commands is done: the run is set back
(`fedface server rewind`) and resumed in a process of its own, which finds the tombstones. The model
before and the model after are put to the test of `fedface site membership`: how close together a
person's images lie, against people whom nobody trained on; the others who are in the training give
the test's power. If the commands do what they say, p-values are small before and uniform after.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import describe_machine, figure, timed, write_json
from PIL import Image
from rich.console import Console
from scipy.stats import kstest

from clients.people import Register
from clients.withdrawal import Verdict, withdraw
from fedface.config import parse_config
from fedface.data.faces import Faces
from fedface.evaluation.membership import MembershipTest
from fedface.random import numpy_stream
from fedface.report.run_folder import RunFolder, write_atomically
from fedface.report.tables import Table
from simulations.build import RunData, build_data, site_folder
from simulations.execution import run_single
from simulations.membership import membership_of
from simulations.rewind import rewind
from simulations.schema import RunConfig, merge

GROUPS = ("full retrain", "retrain from round")
ALPHA = 0.05

FEDERATION: dict[str, Any] = {
    "data": {
        "faces": {"name": "renderer", "n_identities": 104, "images_per_identity": 4, "size": 32},
        "split": {"test": 60, "calibration": 4},
        "partition": {"name": "by_identity"},
    },
    "model": {
        "backbone": {"name": "small_conv", "widths": [16, 32, 64, 128], "embedding_size": 64},
        "head": {"name": "cosface", "scale": 16, "margin": 0.2},
    },
    "training": {
        "epochs": 15,
        "batch_size": 16,
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9},
    },
    "federation": {"n_clients": 4, "clients_per_round": 2, "n_rounds": 10},
    "aggregator": {"name": "mean"},
    "evaluation": {"every": 10, "false_accept_rates": [0.1], "n_bootstrap": 40},
    "engine": {"name": "in_process"},
}
QUICK: dict[str, Any] = {
    "data": {
        "faces": {"n_identities": 40, "size": 16},
        "split": {"test": 20, "calibration": 4},
    },
    "model": {"backbone": {"widths": [4, 4, 8, 8], "embedding_size": 16}},
    "training": {"epochs": 1},
    "federation": {"n_rounds": 5},
    "evaluation": {"every": 5},
}
"""What makes a seed a matter of seconds: a smoke test, no measurement."""


def config_of(output: Path, seed: int, quick: bool) -> RunConfig:
    """Returns the run of one seed; other seeds have other people."""
    content = merge(FEDERATION, QUICK) if quick else FEDERATION
    content = merge(content, {"data": {"faces": {"seed": seed}}})
    content |= {"name": f"seed-{seed}", "seed": seed, "output": str(output)}
    return parse_config(content, RunConfig, "withdrawal")


def in_a_process_of_its_own(work: Callable[[], object]) -> None:
    """Does ``work`` in a child that knows nothing of earlier runs but what is on the disk.

    Raises:
        RuntimeError: If the child fails.
    """
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"a training needs to end with code 0, got {child.exitcode}")


def trained(config: RunConfig) -> None:
    """Runs ``config``, or what is left of it."""
    console = Console(quiet=True)
    in_a_process_of_its_own(lambda: run_single(config, console, config.name, resume=True))


def first_rounds(folder: RunFolder, n_sites: int) -> list[int | None]:
    """Returns the first round of each site, None for a site that was never drawn."""
    first: dict[int, int] = {}
    for event in folder.events("round"):
        for client in event["clients"]:
            first.setdefault(client["client"], event["round"])
    return [first.get(site) for site in range(n_sites)]


def who_withdraws(config: RunConfig, data: RunData, n: int) -> dict[str, tuple[int, list[str]]]:
    """Returns verdict -> a site and ``n`` of its people, drawn with the run's seed."""
    first = first_rounds(RunFolder(config.folder), config.federation.n_clients)
    last = max(range(len(first)), key=lambda site: first[site] or 0)
    sites = {GROUPS[0]: first.index(1)}
    if (first[last] or 0) > 1:
        sites[GROUPS[1]] = last
    rng = numpy_stream(config.seed, "who withdraws")
    chosen = {}
    for group, site in sites.items():
        people = np.unique(data.train.identities[data.parts[site]])
        drawn = rng.choice(people, n, replace=False)
        chosen[group] = (site, [data.train.names[person] for person in sorted(drawn)])
    return chosen


def write_faces(folder: Path, faces: Faces, people: Sequence[str]) -> Path:
    """Writes the images of ``people`` as the folders that the membership test reads."""
    for person in people:
        (folder / person).mkdir(parents=True)
        for index in np.flatnonzero(faces.identities == faces.names.index(person)):
            Image.fromarray(faces.images[index]).save(folder / person / f"{index:06d}.png")
    return folder


def done_as_told(config: RunConfig, site: int, people: Sequence[str]) -> Verdict:
    """Lets ``people`` of ``site`` withdraw and does what the verdict, alike for all, commands."""
    register = Register(site_folder(config, site))
    (verdict,) = {word for person in people for word in withdraw(register, person).verdicts}
    rewind(config.folder, verdict.keep)
    trained(config)
    return verdict


def facts_of(test: MembershipTest) -> dict[str, float | None]:
    """Returns what is kept of one test."""
    return {
        "statistic": test.value,
        "p": test.p_value,
        "power": test.power,
        "power_low": test.power_low,
    }


def of_seed(config: RunConfig, n_people: int, scratch: Path) -> list[dict[str, Any]]:
    """Returns a record for each person who withdrew from the federation of one seed."""
    data = build_data(config)
    faces = scratch / "faces"
    trained(config)
    chosen = who_withdraws(config, data, n_people)
    gone = [person for _, people in chosen.values() for person in people]
    write_faces(faces / "never-seen", data.test, data.test.names)
    write_faces(faces / "gone", data.train, gone)
    staying = [name for name in data.train.names if name not in gone]
    write_faces(faces / "members", data.train, staying)

    def tests(people: Sequence[str]) -> list[dict[str, float | None]]:
        others = (faces / "never-seen", faces / "members")
        return [facts_of(membership_of(config.folder, faces / "gone" / p, *others)) for p in people]

    records = []
    shutil.copytree(config.folder, scratch / "original")  # everybody withdraws from the same run
    for group, (site, people) in chosen.items():
        before = tests(people)
        verdict = done_as_told(config, site, people)
        if verdict.action != group:
            raise RuntimeError(f"the verdict needs to be {group}, got {verdict.action}")
        facts = {"seed": config.seed, "site": site, "verdict": group, "kept_rounds": verdict.keep}
        for person, was, now in zip(people, before, tests(people), strict=True):
            records.append({**facts, "person": person, "before": was, "after": now})
        shutil.rmtree(config.folder)
        shutil.copytree(scratch / "original", config.folder)
    return records


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the people's p-values and the test's power in a few figures."""
    found: dict[str, float] = {"n_people": len(records)}
    for when in ("before", "after"):
        p = np.array([record[when]["p"] for record in records])
        found |= {
            f"{when}_median_p": float(np.median(p)),
            f"{when}_share_at_most_alpha": float(np.mean(p <= ALPHA)),
            f"{when}_uniform_p": float(kstest(p, "uniform").pvalue),
            f"{when}_power": float(np.mean([record[when]["power"] for record in records])),
        }
    return found


def table_of(records: Sequence[dict[str, Any]]) -> Table:
    """Returns the table: one row for each verdict, and one for all."""
    columns = ("verdict", "people", "model", "median p", "p <= 5 %", "uniform? p of KS", "power")
    rows = []
    for group in (*GROUPS, "all"):
        part = [r for r in records if group in ("all", r["verdict"])]
        if not part:
            continue
        found = summary(part)
        for when in ("before", "after"):
            names = ("median_p", "share_at_most_alpha", "uniform_p", "power")
            cells = (figure(found[f"{when}_{name}"]) for name in names)
            rows.append((group, str(len(part)), when, *cells))
    return Table(columns, tuple(rows))


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table and writes it beside the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings: a smoke test")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--people", type=int, default=2, help="for each verdict and seed")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs") / "withdrawal",
        help="run folders; a seed that is complete there is not run again",
    )
    parser.add_argument("--output", type=Path, help="the JSON file; the table goes beside it")
    options = parser.parse_args(argv)
    if options.people < 1:
        parser.error(f"--people needs to be >= 1, got {options.people}")
    if len(set(options.seeds)) != len(options.seeds):
        parser.error("--seeds needs seeds that differ")
    output = options.output or options.runs / "withdrawal.json"
    machine, console = describe_machine(), Console()
    records: list[dict[str, Any]] = []
    cpu_seconds = 0.0
    for seed in options.seeds:
        found = _recorded(options, seed)
        records += found["people"]
        cpu_seconds += found["cpu_seconds"]
        console.print(f"seed {seed}: {len(records)} people so far", highlight=False)
    table = table_of(records).markdown()
    settings = {"seeds": options.seeds, "people": options.people, "quick": options.quick}
    results = {
        "cpu_seconds": cpu_seconds,
        "summary": summary(records),
        "people": records,
    }
    write_json(output, "withdrawal", machine, settings, results)
    write_atomically(output.with_suffix(".md"), table)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{cpu_seconds:.0f} CPU seconds; written: {output}", highlight=False)


def _recorded(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What one seed gave: people and seconds; done before, it is not done again."""
    config = config_of(options.runs, seed, options.quick)
    settings = {"config": config.to_yaml_dict(), "people": options.people}
    path = options.runs / f"people-{seed}.json"
    if path.is_file() and (found := json.loads(path.read_text()))["settings"] == settings:
        return dict(found)
    people: list[dict[str, Any]] = []
    spent = timed(lambda: people.extend(_fresh(options, config, seed)))
    found = {"settings": settings, "cpu_seconds": spent.cpu_seconds, "people": people}
    write_atomically(path, json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def _fresh(options: argparse.Namespace, config: RunConfig, seed: int) -> list[dict[str, Any]]:
    """One seed in folders of its own, which are made anew."""
    scratch = options.runs / f"scratch-{seed}"
    for folder in (scratch, config.folder):
        shutil.rmtree(folder, ignore_errors=True)
    # Decoded faces of people who withdraw are deleted from the cache: not from the caller's.
    os.environ["FEDFACE_CACHE"] = str((options.runs / "cache").absolute())
    return of_seed(config, options.people, scratch)


if __name__ == "__main__":
    main()
