"""What an engine costs beyond the work itself: seconds, CPU seconds and memory of a round.

    python benchmarks/engine_overhead.py [--quick] [--sizes 1 11 43] [--clients 10 50]
        [--engines resident flower in_process plain_loop memcpy] [--output FILE.json]

The client is trivial: it adds 0.001 to each of the 60 tensors that it gets and sends them back, by
:mod:`clients.arrays` as the product's sites do. The server takes the product's own path:
messages by :func:`strategies.cohorts.exchange`, screening by :func:`strategies.records.to_update`,
:class:`fedface.aggregation.Mean`. Beside the engines stand a plain loop that sends nothing (for
each client: copy the weights, add, add to the running mean, in memory reserved before) and a copy
of the same bytes into a matrix that is there already. Each case has a fresh process; memory is
sampled in rounds of its own, which are not timed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from measuring import (
    PeakMemory,
    answer,
    describe_machine,
    figure,
    gigabytes,
    proportional_bytes,
    run_case,
    too_large,
    tree_cpu_seconds,
    write_json,
)
from rich.console import Console

from clients.arrays import to_record as to_reply
from clients.arrays import to_tensors
from fedface.aggregation import Mean
from fedface.aggregation.screening import InvalidReply, ReplyLimits
from fedface.parameters import Layout
from fedface.random import stream
from fedface.report.tables import MISSING, Table
from simulations.engine import AnyEngine, FlowerEngine, InProcessEngine, ResidentEngine
from simulations.engine.workers import ClientResources
from strategies.cohorts import exchange, roll_call
from strategies.records import ARRAYS, CONFIG, METRICS, to_cohort, to_record, to_update

ENGINES = ("resident", "flower", "in_process", "plain_loop", "memcpy")
RATIOS = ("flower", "plain_loop")
"""What the resident engine is compared with."""

STEP = 0.001
TIMEOUT = 600.0
N_TENSORS = 60
COPIES = {"resident": 1.0, "flower": 3.6, "in_process": 3.2, "plain_loop": 0.0, "memcpy": 1.0}
"""How often the cohort's bytes lie in memory at the peak, for leaving out what would not fit."""


def layout_of(n_parameters: int, n_tensors: int = N_TENSORS) -> Layout:
    """Returns ``n_tensors`` equal parameters that sum to ``n_parameters``; the last one evens out.

    Raises:
        ValueError: If there are fewer numbers than tensors.
    """
    if n_parameters < n_tensors:
        raise ValueError(f"a layout needs n_parameters >= {n_tensors}, got {n_parameters}")
    size = n_parameters // n_tensors
    shapes = {f"layer{i:02d}.weight": (size,) for i in range(n_tensors - 1)}
    return Layout.from_shapes(
        {**shapes, f"layer{n_tensors - 1:02d}.weight": (n_parameters - size * (n_tensors - 1),)}
    )


def trivial_app() -> ClientApp:
    """Returns the client that adds 0.001 to all that it gets."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Says which partition this node holds."""
        metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Sends the weights back, a little larger."""
        received = to_tensors(message.content.array_records[ARRAYS])
        _work(message.content.config_records[CONFIG].get("work-seconds", 0.0))
        arrays = to_reply({name: torch.add(value, STEP) for name, value in received.items()})
        metrics = MetricRecord({"num-examples": 1, "num-steps": 1, "loss": 0.0})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)

    return app


def _work(seconds: float) -> None:
    """Keeps a core busy for so many CPU seconds."""
    end = process_time() + seconds
    while process_time() < end:
        pass


def engine_named(name: str, n_workers: int, n_bytes: int = 0) -> AnyEngine:
    """Returns the engine with ``n_workers`` workers of one CPU each, without a GPU.

    Args:
        name: Of the engine.
        n_workers: Workers; the in-process engine has none.
        n_bytes: What a model takes, for the room that broadcasts get.
    """
    if name == "in_process":
        return InProcessEngine()
    resources = ClientResources(num_cpus=1, num_gpus=0)
    if name == "flower":
        return FlowerEngine(client_resources=resources, num_cpus=n_workers)
    store = max(1 << 30, 4 * n_bytes)
    return ResidentEngine(client_resources=resources, num_cpus=n_workers, object_store_bytes=store)


class Rounds:
    """Rounds of the real server path over one grid, and what they took.

    Attributes:
        weights: Name -> global weight; the mean of the replies is the next global model.
        facts: One mapping per timed round: seconds of the exchange and of the server's step, CPU
            seconds of both.
        failed: Why clients failed, one text for each.
        on_replies: Called with each round's replies, outside the timing.
    """

    def __init__(
        self, n_parameters: int, seed: int = 0, work: Mapping[int, float] | None = None
    ) -> None:
        """Draws the first weights.

        Args:
            n_parameters: Of the model.
            seed: Fixes the weights.
            work: Client -> CPU seconds that it works beside the addition; none by default.
        """
        self.layout = layout_of(n_parameters)
        start = torch.randn(n_parameters, generator=stream(seed, "engine overhead"))
        self.weights = self.layout.unflatten(start)
        self.seed, self.work = seed, work or {}
        self.first_value = float(start[0])
        self.facts: list[dict[str, float]] = []
        self.failed: list[str] = []
        self.n_rounds = 0
        self.on_replies: Callable[[Mapping[int, Message]], None] | None = None

    def run(self, grid: Grid, roster: Mapping[int, int], timed: bool = True) -> None:
        """Runs one round with the clients of ``roster``.

        Raises:
            RuntimeError: If not all answered, or the mean is not what it must be.
        """
        self.n_rounds += 1
        cpu, start = tree_cpu_seconds() if timed else 0.0, perf_counter()
        replies = self._exchanged(grid, roster)
        exchanged = perf_counter()
        self._step(replies)
        ended = perf_counter()
        if timed:
            self.facts.append(
                {
                    "exchange_seconds": exchanged - start,
                    "server_seconds": ended - exchanged,
                    "cpu_seconds": tree_cpu_seconds() - cpu,
                }
            )
        if self.on_replies is not None:
            self.on_replies(replies)
        wanted = self.first_value + STEP * self.n_rounds
        found = float(self.weights[self.layout.slots[0].name][0])
        if abs(found - wanted) > 0.01 * STEP * self.n_rounds + 1e-5:
            raise RuntimeError(f"the mean needs to be {wanted:.4f}, found {found:.4f}")

    def _exchanged(self, grid: Grid, roster: Mapping[int, int]) -> dict[int, Message]:
        arrays = to_record(self.weights)
        messages = {
            client: Message(
                RecordDict({ARRAYS: arrays, CONFIG: self._settings(client)}),
                node,
                "train",
                group_id=str(self.n_rounds),
            )
            for client, node in roster.items()
        }
        replies = exchange(grid, messages, TIMEOUT)
        if len(replies) < len(roster):
            raise RuntimeError(f"needed {len(roster)} replies, got {len(replies)}")
        return replies

    def _settings(self, client: int) -> ConfigRecord:
        work = self.work.get(client, 0.0)
        return ConfigRecord({"server-round": self.n_rounds, "work-seconds": work})

    def _step(self, replies: Mapping[int, Message]) -> None:
        updates, limits = [], ReplyLimits()
        for client, reply in sorted(replies.items()):
            try:
                updates.append(to_update(client, reply, self.layout, {}, limits))
            except InvalidReply as error:
                self.failed.append(str(error))
        if not updates:
            raise RuntimeError(f"every client failed: {self.failed[-1]}")
        cohort = to_cohort(updates, self.layout, self.n_rounds, self.seed)
        aggregation, _ = Mean()(cohort, {})
        self.weights = {n: v.clone() for n, v in self.layout.unflatten(aggregation.update).items()}


def plain_loop(n_parameters: int, n_clients: int) -> Callable[[], None]:
    """Returns a round without messages: copy, add, running mean, in memory reserved before."""
    layout = layout_of(n_parameters)
    weights, local, mean = (layout.unflatten(torch.zeros(n_parameters)) for _ in range(3))

    def work() -> None:
        for value in mean.values():
            value.zero_()
        for _ in range(n_clients):
            for name, value in weights.items():
                mean[name].add_(local[name].copy_(value).add_(STEP), alpha=1 / n_clients)
        for name, value in weights.items():
            value.copy_(mean[name])

    return work


def memcpy(n_parameters: int, n_clients: int) -> Callable[[], None]:
    """Returns a copy of the weights into each row of a matrix."""
    weights, matrix = torch.zeros(n_parameters), torch.zeros(n_clients, n_parameters)

    def work() -> None:
        for row in matrix:
            row.copy_(weights)

    return work


def without_messages(case: Mapping[str, Any]) -> dict[str, Any]:
    """Measures a plain loop or a copy."""
    make = {"plain_loop": plain_loop, "memcpy": memcpy}[case["engine"]]
    base = proportional_bytes(os.getpid())
    work = make(case["n_parameters"], case["n_clients"])
    facts = []
    for _ in range(case["n_rounds"]):
        cpu, start = tree_cpu_seconds(), perf_counter()
        work()
        seconds = perf_counter() - start
        cpu_seconds = tree_cpu_seconds() - cpu
        facts.append(
            {"exchange_seconds": seconds, "server_seconds": 0.0, "cpu_seconds": cpu_seconds}
        )
    with PeakMemory() as memory:
        work()
    return {"startup_seconds": 0.0, **summary(facts, memory.peak, base, case)}


def with_engine(case: Mapping[str, Any]) -> dict[str, Any]:
    """Measures an engine."""
    rounds = Rounds(case["n_parameters"], case["seed"])
    engine = engine_named(case["engine"], case["n_workers"], 4 * case["n_parameters"])
    base, start = proportional_bytes(os.getpid()), perf_counter()
    found: dict[str, Any] = {}

    def server(grid: Grid) -> None:
        roster = roll_call(grid, case["n_clients"], TIMEOUT)
        found["startup_seconds"] = perf_counter() - start
        for _ in range(case["n_rounds"]):
            rounds.run(grid, roster)
        with PeakMemory() as memory:
            for _ in range(case["n_memory_rounds"]):
                rounds.run(grid, roster, timed=False)
        found["peak"] = memory.peak

    engine.run(server, trivial_app(), case["n_clients"])
    if rounds.failed:
        raise RuntimeError(f"{len(rounds.failed)} clients failed: {rounds.failed[0]}")
    return {
        "startup_seconds": found["startup_seconds"],
        **summary(rounds.facts, found["peak"], base, case),
    }


def summary(
    facts: list[dict[str, float]], peak: int, base: int, case: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a case's figures: the first round apart, medians of the later ones.

    CPU seconds are a mean, because the kernel counts them in ticks.

    Args:
        facts: One mapping per timed round, two at least.
        peak: Bytes of the whole tree at the peak.
        base: Bytes before the engine started.
        case: For the size of the cohort's matrix.
    """
    later = facts[1:]
    matrix = 4 * case["n_parameters"] * case["n_clients"]
    totals = [f["exchange_seconds"] + f["server_seconds"] for f in facts]
    return {
        "first_round_seconds": totals[0],
        "round_seconds": median(totals[1:]),
        "exchange_seconds": median(f["exchange_seconds"] for f in later),
        "server_seconds": median(f["server_seconds"] for f in later),
        "cpu_seconds": sum(f["cpu_seconds"] for f in later) / len(later),
        "peak_bytes": peak,
        "base_bytes": base,
        "matrix_bytes": matrix,
        "peak_per_matrix": peak / matrix,
        "rounds": facts,
        "server_threads": torch.get_num_threads(),
    }


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a case's figures; runs in the case's own process."""
    torch.set_num_threads(case["server_threads"])
    without = case["engine"] in ("plain_loop", "memcpy")
    return without_messages(case) if without else with_engine(case)


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each size and number of clients how the resident engine compares."""
    found: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for result in results:
        place = found.setdefault((result["n_parameters"], result["n_clients"]), {})
        if "round_seconds" in result:
            place[result["engine"]] = result
    rows = []
    for (size, n_clients), by_engine in found.items():
        row: dict[str, Any] = {"n_parameters": size, "n_clients": n_clients}
        for other in RATIOS:
            for key in ("round_seconds", "exchange_seconds", "cpu_seconds", "peak_bytes"):
                pair = [by_engine.get(name, {}).get(key) for name in ("resident", other)]
                row[f"resident_per_{other}_{key}"] = pair[0] / pair[1] if all(pair) else None
        rows.append(row)
    return rows


def table(results: list[dict[str, Any]]) -> Table:
    """Returns one row per case, with its ratios to Flower's engine and to the plain loop."""
    by_place = {
        (r["n_parameters"], r["n_clients"], r["engine"]): r["round_seconds"]
        for r in results
        if "round_seconds" in r
    }
    rows = []
    for r in results:
        start = (f"{r['n_parameters'] / 1e6:g}M x {r['n_clients']}", r["engine"])
        if "round_seconds" not in r:
            why = r.get("left_out") or r["error"]
            rows.append((*start, why, *[MISSING] * 8))
            continue
        others = (by_place.get((r["n_parameters"], r["n_clients"], n)) for n in RATIOS)
        rows.append(
            (
                *start,
                figure(r["round_seconds"]),
                figure(r["exchange_seconds"]),
                figure(r["server_seconds"]),
                figure(r["cpu_seconds"]),
                f"{figure(r['startup_seconds'])} + {figure(r['first_round_seconds'])}",
                gigabytes(r["peak_bytes"]),
                figure(r["peak_per_matrix"]),
                *(figure(r["round_seconds"] / other) if other else MISSING for other in others),
            )
        )
    return Table(
        (
            "parameters x clients",
            "engine",
            "s / round",
            "exchange s",
            "server s",
            "CPU s",
            "start + first s",
            "peak GB",
            "peak / matrix",
            *(f"/ {name}" for name in RATIOS),
        ),
        tuple(rows),
    )


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what is to be measured, in order."""
    return [
        {
            "engine": engine,
            "n_parameters": int(size * 1e6),
            "n_clients": n_clients,
            "n_rounds": 3 if options.quick or size * n_clients > 1000 else options.rounds,
            "n_memory_rounds": 1,
            "n_workers": options.workers,
            "server_threads": options.server_threads,
            "seed": options.seed,
        }
        for size in options.sizes
        for n_clients in options.clients
        for engine in options.engines
    ]


def run(options: argparse.Namespace, console: Console) -> Table:
    """Measures every case, writes the JSON and returns the table."""
    machine, results = describe_machine(), []
    for case in cases(options):
        needed = COPIES[case["engine"]] * 4 * case["n_parameters"] * case["n_clients"] + 1.5e9
        if why := too_large(needed):
            results.append({**case, "left_out": why})
            continue
        with console.status(f"{case['n_parameters']:,} x {case['n_clients']} {case['engine']}"):
            results.append(run_case(Path(__file__), case, timeout=options.timeout))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(
        options.output,
        "engine_overhead",
        {**machine, "seed": options.seed},
        settings,
        {"results": results, "ratios": ratios(results)},
    )
    return table(results)


def main(arguments: list[str]) -> None:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tenth of a million, four clients")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 11, 43], help="millions")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds, the first one apart")
    parser.add_argument("--workers", type=int, default=cores)
    parser.add_argument("--server-threads", type=int, default=cores, help="torch threads")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/engine_overhead.json"))
    options = parser.parse_args(arguments)
    if options.case is not None:
        answer(measure(options.case))
        return
    if options.quick:
        options.sizes, options.clients = [0.1], [4]
    console = Console(stderr=True)
    sys.stdout.write(run(options, console).markdown())
    console.print(f"figures: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
