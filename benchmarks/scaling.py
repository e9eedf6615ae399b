"""How the resident engine grows, whether it leaks, and whether a killed worker changes a result.

    python benchmarks/scaling.py [--quick] [--output FILE.json]      # growth curves
    python benchmarks/scaling.py --soak 500                          # memory over rounds
    python benchmarks/scaling.py --kill-every 5 --rounds 50          # kill -9 of workers

Growth: 10 to 1,000 clients of a small model, 1M to 65M parameters, one worker up to the cores
there are (clients that each keep a core busy for some milliseconds), and the scheduler up to
100,000 clients. The last is a simulation: client costs recorded in the run with all workers are
drawn with replacement, and list scheduling hands the longest work out first; beside it stand the
order of arrival and the bound that no schedule beats. Every curve is fitted by least squares to
seconds = a + b n, the one over workers to a + b / n. SVG charts lie beside the JSON.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from heapq import heapreplace
from pathlib import Path
from signal import SIGKILL
from statistics import median
from threading import Timer
from time import perf_counter
from typing import Any

import numpy as np
import torch
from engine_overhead import TIMEOUT, Rounds, engine_named, trivial_app
from flwr.app import Message
from flwr.serverapp import Grid
from measuring import (
    answer,
    describe_machine,
    figure,
    processes,
    proportional_bytes,
    run_case,
    too_large,
    tree,
    write_json,
)
from svg_chart import chart

from fedface.random import numpy_stream
from fedface.report.tables import MISSING, Table
from simulations.engine.costs import makespan
from strategies.cohorts import roll_call
from strategies.records import ARRAYS

WARM_UP = 50
"""Rounds of a soak that its slope leaves out."""

WORKER = "ray::ClientWorker"
"""How the resident engine's workers are called among the processes."""

# ---- arithmetic


def fit(points: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Returns the least-squares line y = a + b x and its r^2.

    ``r2`` is None where all y are the same: there is nothing to explain.

    Raises:
        ValueError: If there are fewer than two different x.
    """
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    if len(set(x.tolist())) < 2:
        raise ValueError(f"a line needs at least two different x, got {len(set(x.tolist()))}")
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    left = dy - slope * dx
    explained = float(1 - left @ left / (dy @ dy)) if dy @ dy > 0 else None
    return {"a": float(y.mean() - slope * x.mean()), "b": slope, "r2": explained}


def in_order(costs: Sequence[float], n_workers: int) -> float:
    """Returns when the last worker ends if work is handed out in the order given."""
    busy_until = [0.0] * n_workers
    for seconds in costs:
        heapreplace(busy_until, busy_until[0] + seconds)
    return max(busy_until)


def schedules(
    recorded: Sequence[float], n_clients: Sequence[int], n_workers: Sequence[int], seed: int
) -> list[dict[str, float]]:
    """Returns what each number of clients takes on each number of workers, simulated.

    Args:
        recorded: Seconds of real clients, from which costs are drawn with replacement.
        n_clients: Numbers of clients.
        n_workers: Numbers of workers.
        seed: Fixes the draw.
    """
    results = []
    for n in n_clients:
        rng = numpy_stream(seed, "scaling schedule", n)
        costs = rng.choice(np.asarray(recorded, dtype=np.float64), n).tolist()
        for workers in n_workers:
            start = perf_counter()
            longest_first = makespan(costs, workers)
            planning = perf_counter() - start
            bound = max(sum(costs) / workers, max(costs))
            results.append(
                {
                    "n_clients": n,
                    "n_workers": workers,
                    "seconds": longest_first,
                    "in_order_seconds": in_order(costs, workers),
                    "bound_seconds": bound,
                    "efficiency": bound / longest_first,
                    "planning_seconds": planning,
                }
            )
    return results


# ---- cases, each in a process of its own


def _seconds(rounds: Rounds, n: int) -> float:
    """Median seconds of the last ``n`` rounds."""
    return median(f["exchange_seconds"] + f["server_seconds"] for f in rounds.facts[-n:])


def by_clients(case: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds of ever more of the clients of one federation."""
    points: list[tuple[int, float]] = []

    def server(grid: Grid) -> None:
        roster = roll_call(grid, max(case["n_clients"]), TIMEOUT)
        rounds = Rounds(case["n_parameters"], case["seed"])
        for n in case["n_clients"]:
            asked = {client: roster[client] for client in range(n)}
            for _ in range(case["n_rounds"]):
                rounds.run(grid, asked)
            points.append((n, _seconds(rounds, case["n_rounds"] - 1)))
        _none_failed(rounds)

    engine = engine_named("resident", case["n_workers"], 4 * case["n_parameters"])
    engine.run(server, trivial_app(), max(case["n_clients"]))
    return {"points": points}


def by_parameters(case: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds of the same clients with ever larger models."""
    points: list[tuple[int, float]] = []
    left_out: dict[str, str] = {}

    def server(grid: Grid) -> None:
        roster = roll_call(grid, case["n_clients"], TIMEOUT)
        for dim in case["n_parameters"]:
            if why := too_large(4 * dim * (2 * case["n_clients"] + 8)):
                left_out[str(dim)] = why
                continue
            rounds = Rounds(dim, case["seed"])
            for _ in range(case["n_rounds"]):
                rounds.run(grid, roster)
            points.append((dim, _seconds(rounds, case["n_rounds"] - 1)))
            _none_failed(rounds)

    engine = engine_named("resident", case["n_workers"], 4 * max(case["n_parameters"]))
    engine.run(server, trivial_app(), case["n_clients"])
    return {"points": points, "left_out": left_out}


def by_workers(case: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds of clients that work, unequally; returns what each of them was measured to take."""
    n = case["n_clients"]
    drawn = numpy_stream(case["seed"], "scaling work").lognormal(0, 0.5, n)
    work = {client: float(case["work_seconds"] * drawn[client]) for client in range(n)}
    found: dict[str, Any] = {"work_seconds_in_all": sum(work.values())}

    def server(grid: Grid) -> None:
        roster = roll_call(grid, n, TIMEOUT)
        rounds = Rounds(case["n_parameters"], case["seed"], work)
        for _ in range(case["n_rounds"]):
            rounds.run(grid, roster)
        _none_failed(rounds)
        found["seconds"] = _seconds(rounds, case["n_rounds"] - 1)
        found["costs"] = [grid.costs.expected(node, "train") for node in roster.values()]

    engine_named("resident", case["n_workers"]).run(server, trivial_app(), n)
    return found


def soak(case: Mapping[str, Any]) -> dict[str, Any]:
    """Many rounds; memory of the whole tree every so many of them."""
    points: list[tuple[int, int]] = []

    def server(grid: Grid) -> None:
        roster = roll_call(grid, case["n_clients"], TIMEOUT)
        rounds = Rounds(case["n_parameters"], case["seed"])
        for done in range(1, case["n_rounds"] + 1):
            rounds.run(grid, roster, timed=False)
            if done % case["every"] == 0:
                points.append((done, proportional_bytes(os.getpid())))
        _none_failed(rounds)

    engine_named("resident", case["n_workers"]).run(server, trivial_app(), case["n_clients"])
    return {"points": points}


def disturbed(case: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds in some of which one worker is killed; digests of all replies."""
    digests: list[str] = []
    killed: list[int] = []
    work = dict.fromkeys(range(case["n_clients"]), case["work_seconds"])
    rounds = Rounds(case["n_parameters"], case["seed"], work)
    rounds.on_replies = lambda replies: digests.append(digest(replies))

    def kill() -> None:
        there = workers()
        if there:
            killed.append(there[len(killed) % len(there)])
            os.kill(killed[-1], SIGKILL)

    def server(grid: Grid) -> None:
        roster = roll_call(grid, case["n_clients"], TIMEOUT)
        for done in range(1, case["n_rounds"] + 1):
            timer = Timer(case["work_seconds"] * (1 + done % 3), kill)
            if case["kill_every"] and done % case["kill_every"] == 0:
                timer.start()
            rounds.run(grid, roster)
            timer.cancel()

    engine_named("resident", case["n_workers"]).run(server, trivial_app(), case["n_clients"])
    return {
        "digests": digests,
        "n_killed": len(killed),
        "failed": rounds.failed,
        "seconds": median(f["exchange_seconds"] for f in rounds.facts),
    }


CASES = {
    "clients": by_clients,
    "parameters": by_parameters,
    "workers": by_workers,
    "soak": soak,
    "disturbed": disturbed,
}


def _none_failed(rounds: Rounds) -> None:
    if rounds.failed:
        raise RuntimeError(f"{len(rounds.failed)} clients failed: {rounds.failed[0]}")


def workers() -> list[int]:
    """Returns the ids of this process's workers, ascending."""
    found = []
    for number in sorted(tree(os.getpid(), processes())):
        try:
            name = (Path("/proc") / str(number) / "cmdline").read_text()
        except OSError:
            continue
        if name.startswith(WORKER):
            found.append(number)
    return found


def digest(replies: Mapping[int, Message]) -> str:
    """Returns the SHA-256 of all replies' names, shapes and bytes, by client."""
    sha = hashlib.sha256()
    for client, reply in sorted(replies.items()):
        sha.update(str(client).encode())
        if reply.has_error():
            sha.update(b"failed")
            continue
        for name, array in reply.content.array_records[ARRAYS].items():
            sha.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
            sha.update(np.ascontiguousarray(array.numpy()).tobytes())
    return sha.hexdigest()


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a case's figures; runs in the case's own process."""
    torch.set_num_threads(case["n_workers"])
    return CASES[case["kind"]](case)


# ---- the three benchmarks


def _case(options: argparse.Namespace, kind: str, **more: Any) -> dict[str, Any]:
    """Runs a case; a benchmark that lacks one of its cases has no result at all."""
    case = {"kind": kind, "n_workers": options.workers, "seed": options.seed, **more}
    result = run_case(Path(__file__), case, timeout=options.timeout)
    if "error" in result:
        raise RuntimeError(f"{kind}: {result['error']}")
    return result


def growth(options: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measures the curves of growth and draws them."""
    quick, rounds = options.quick, 2 if options.quick else 4
    clients = _case(
        options,
        "clients",
        n_clients=[2, 6] if quick else [10, 30, 100, 300, 1000],
        n_parameters=1_000 if quick else 100_000,
        n_rounds=rounds,
    )
    sizes = [0.01, 0.1] if quick else [1, 4, 11, 24, 43, 65]
    dims = _case(
        options,
        "parameters",
        n_parameters=[int(size * 1e6) for size in sizes],
        n_clients=2 if quick else 10,
        n_rounds=rounds,
    )
    numbers = sorted({1, options.workers} | {2**i for i in range(10) if 2**i < options.workers})
    by_worker = [
        _case(
            options,
            "workers",
            n_workers=n,
            n_clients=4 if quick else 50,
            n_parameters=1_000 if quick else 100_000,
            work_seconds=0.005 if quick else 0.04,
            n_rounds=rounds,
        )
        for n in numbers
    ]
    simulated = schedules(
        by_worker[-1]["costs"],
        [10, 100] if quick else [10, 100, 1_000, 10_000, 100_000],
        [1, 2] if quick else [1, 2, 8, 64],
        options.seed,
    )
    first = by_worker[0]["seconds"]
    curves = {
        "clients": clients["points"],
        "parameters": dims["points"],
        "workers": [(r["n_workers"], r["seconds"]) for r in by_worker],
    }
    for n in dict.fromkeys(s["n_workers"] for s in simulated):
        picked = [(s["n_clients"], s["seconds"]) for s in simulated if s["n_workers"] == n]
        curves[f"simulated clients on {n} workers"] = picked
    bases = {**curves, "workers": [(1 / n, seconds) for n, seconds in curves["workers"]]}
    fits = {name: fit(points) if len(points) > 1 else None for name, points in bases.items()}
    draw(options.output.parent, curves)
    return growth_table(curves, fits, simulated, first), {
        "curves": curves,
        "fits": fits,
        "left_out": dims["left_out"],
        "speedups": {str(r["n_workers"]): first / r["seconds"] for r in by_worker},
        "workers": by_worker,
        "schedules": simulated,
    }


def growth_table(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    fits: Mapping[str, Mapping[str, float | None] | None],
    simulated: Sequence[Mapping[str, float]],
    one_worker: float,
) -> Table:
    """Returns one row per point, with its curve's line in the first row of each."""
    shares = {(s["n_workers"], s["n_clients"]): s["efficiency"] for s in simulated}
    rows = []
    for name, points in curves.items():
        line = fits[name]
        for number, (n, seconds) in enumerate(points):
            shown = ""
            if number == 0 and line is not None:
                unit = "/ n" if name == "workers" else "n"
                shown = f"{figure(line['a'])} + {figure(line['b'])} {unit}, "
                shown += f"r2 {figure(line['r2'], 5)}"
            note = MISSING
            if name == "workers":
                note = f"{one_worker / seconds:.2f} x one worker"
            elif name.startswith("simulated"):
                note = f"{shares[int(name.split()[3]), int(n)]:.1%} of the best possible"
            rows.append((name, f"{n:,}", figure(seconds), note, shown))
    return Table(("curve", "n", "s / round", "", "least squares"), tuple(rows))


def draw(folder: Path, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Writes the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, title in (
        ("clients", "clients a round"),
        ("parameters", "parameters"),
        ("workers", "workers"),
    ):
        lines, log = {"resident engine": curves[name]}, name != "workers"
        if name == "workers":
            (n, seconds), *_ = curves[name]
            lines["perfect"] = [(m, seconds * n / m) for m, _ in curves[name]]
        image = chart(f"Seconds a round by {title}", title, "seconds", lines, log, log)
        (folder / f"scaling_{name}.svg").write_text(image)
    lines = {
        name.removeprefix("simulated clients on "): points
        for name, points in curves.items()
        if name.startswith("simulated")
    }
    image = chart("Longest first, simulated", "clients a round", "seconds", lines, True, True)
    (folder / "scaling_schedule.svg").write_text(image)


def soaked(options: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measures memory over rounds."""
    every = 10 if options.soak >= 3 * WARM_UP else max(options.soak // 10, 1)
    warm_up = min(WARM_UP, options.soak // 2)
    result = _case(
        options,
        "soak",
        n_clients=10,
        n_parameters=10_000 if options.quick else 1_000_000,
        n_rounds=options.soak,
        every=every,
    )
    later = [(n, size / 1024) for n, size in result["points"] if n > warm_up]
    line = fit(later)
    points = [(n, size / 1e6) for n, size in result["points"]]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    image = chart("Memory of all processes", "round", "MB (PSS)", {"resident engine": points})
    options.output.with_suffix(".svg").write_text(image)
    row = (
        str(options.soak),
        f"{points[0][1]:.1f}",
        f"{points[-1][1]:.1f}",
        f"{line['b']:.3f}",
        figure(line["r2"]),
    )
    titles = ("rounds", "MB at first", "MB at last", f"KB / round after {warm_up}", "r2")
    return Table(titles, (row,)), {"soak": result, "warm_up": warm_up, "fit": line}


def killed(options: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Compares a run whose workers are killed with one that is left alone."""
    more = {
        "n_clients": 4 if options.quick else 10,
        "n_parameters": 10_000,
        "n_rounds": options.rounds,
        "work_seconds": 0.02,
    }
    alone = _case(options, "disturbed", kill_every=0, **more)
    hit = _case(options, "disturbed", kill_every=options.kill_every, **more)
    same = sum(a == b for a, b in zip(alone["digests"], hit["digests"], strict=True))
    row = (
        str(options.rounds),
        str(hit["n_killed"]),
        str(len(hit["failed"])),
        f"{same}/{options.rounds}",
        figure(alone["seconds"]),
        figure(hit["seconds"]),
    )
    titles = (
        "rounds",
        "workers killed",
        "clients failed",
        "rounds with the same replies",
        "s / round undisturbed",
        "s / round",
    )
    facts = {"undisturbed": alone, "disturbed": hit, "rounds_alike": same}
    return Table(titles, (row,)), facts


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--soak", type=int, nargs="?", const=500, help="rounds")
    parser.add_argument("--kill-every", type=int, help="kill a worker every so many rounds")
    parser.add_argument("--rounds", type=int, default=50, help="rounds with --kill-every")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default runs/benchmarks/scaling*.json")
    options = parser.parse_args(arguments)
    if options.case is not None:
        answer(measure(options.case))
        return
    kind, act = "scaling", growth
    if options.soak is not None:
        kind, act = "scaling_soak", soaked
    elif options.kill_every is not None:
        kind, act = "scaling_kill", killed
    options.output = options.output or Path(f"runs/benchmarks/{kind}.json")
    machine = describe_machine()
    table, results = act(options)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(options.output, kind, {**machine, "seed": options.seed}, settings, results)
    sys.stdout.write(table.markdown())
    sys.stderr.write(f"figures: {options.output}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
