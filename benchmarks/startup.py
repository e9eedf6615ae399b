"""How long one waits before anything happens: the help text, Ray alone, and the first message.

    python benchmarks/startup.py [--rounds 5] [--config configs/demo.yaml] [--output FILE.json]

``help`` is the wall clock of ``fedface --help``. ``ray`` starts Ray as the engines do, and two
workers that do nothing, until both have answered. The others run the configuration's first variant
with an engine of two workers until the first message about training goes out: imports, data, Ray,
workers that have imported what sites need and answered the roll call. Seconds since the process
began, each in a process of its own; medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from measuring import answer, describe_machine, figure, run_case, write_json

from fedface.report.tables import MISSING, Table

ENGINES = ("resident", "flower", "in_process")
CASES = ("help", "ray", *ENGINES)
N_WORKERS = 2


class FirstMessage(BaseException):
    """Ends a run when its first message about training is about to leave."""


def process_age() -> float:
    """Returns the seconds since this process began, to a hundredth."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / os.sysconf("SC_CLK_TCK")


def help_text() -> float:
    """Returns the seconds of ``fedface --help``."""
    command = [str(Path(sys.executable).with_name("fedface")), "--help"]
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def ray_alone() -> float:
    """Starts Ray and its workers; returns the process's age when they have answered."""
    import ray

    from simulations.engine.workers import prepare_environment, ray_arguments

    class Worker:
        """Does nothing."""

        def answer(self) -> None:
            """Is there."""

    prepare_environment()
    ray.init(**ray_arguments(N_WORKERS))
    remote: Any = ray.remote(Worker)
    workers = [remote.options(num_cpus=1).remote() for _ in range(N_WORKERS)]
    ray.get([worker.answer.remote() for worker in workers])
    age = process_age()
    ray.shutdown()
    return age


def first_message(config: str, engine: str) -> float:
    """Runs the first variant of ``config``; returns the process's age at its first message."""
    from rich.console import Console

    import strategies.robust
    from simulations.execution import run_single
    from simulations.schema import RunConfig, load_run, variants

    found: list[float] = []

    def stop(*_: object, **__: object) -> None:
        found.append(process_age())
        raise FirstMessage

    vars(strategies.robust)["exchange"] = stop
    with tempfile.TemporaryDirectory() as folder:
        settings = {"name": engine} | ({} if engine == "in_process" else {"num_cpus": N_WORKERS})
        whole = load_run(Path(config), output=Path(folder))
        variant, _, single = variants(whole)[0]
        single = RunConfig.model_validate(single.to_yaml_dict() | {"engine": settings})
        try:
            with single.engine.ready():
                run_single(single, Console(quiet=True), variant)
        except FirstMessage:
            return found[0]
    raise RuntimeError("the run ended before its first message")


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a case's seconds; runs in the case's own process."""
    if case["what"] == "help":
        return {"seconds": help_text()}
    if case["what"] == "ray":
        return {"seconds": ray_alone()}
    return {"seconds": first_message(case["config"], case["what"])}


def table(results: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per case, with what an engine takes beyond Ray's own start."""
    seconds = {what: [r["seconds"] for r in rs if "seconds" in r] for what, rs in results.items()}
    alone = median(seconds["ray"]) if seconds.get("ray") else None
    rows = []
    for what, found in seconds.items():
        if not found:
            rows.append((what, results[what][0]["error"], *[MISSING] * 3))
            continue
        beyond = what in ("resident", "flower") and alone is not None
        rows.append(
            (
                what,
                figure(median(found)),
                figure(min(found)),
                figure(max(found)),
                figure(median(found) - alone) if beyond and alone is not None else MISSING,
            )
        )
    return Table(("what", "s", "least", "most", "beyond Ray alone"), tuple(rows))


def run(options: argparse.Namespace) -> Table:
    """Measures every case in turn, so many times, and writes the JSON."""
    results: dict[str, list[dict[str, Any]]] = {what: [] for what in options.cases}
    for _ in range(options.rounds):
        for what in options.cases:
            case = {"what": what, "config": str(options.config.resolve())}
            results[what].append(run_case(Path(__file__), case))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(options.output, "startup", describe_machine(), settings, {"results": results})
    return table(results)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/startup.json"))
    options = parser.parse_args(arguments)
    if options.case is None:
        sys.stdout.write(run(options).markdown())
        sys.stderr.write(f"figures: {options.output}\n")
    else:
        answer(measure(options.case))


if __name__ == "__main__":
    main(sys.argv[1:])
