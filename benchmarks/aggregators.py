"""What every aggregator costs on updates of a real network, beside Flower's and ByzFL's.

    python benchmarks/aggregators.py [--quick] [--warm] [--clients 20 50]
        [--sources fedface flower byzfl] [--names krum median ...] [--output FILE.json]

The updates are n x 11.4M float32 in the layout of an IResNet-18 (32 pixels, 128 numbers), Gaussian
about a shared direction. fedface's aggregators have their defaults (none is told the number of
attackers), Flower's strategies and ByzFL's rules are told f = n / 5; Flower's get replies whose
arrays lie in memory. Each aggregator runs in a process of its own, forked from one that did nothing
but import and read the updates, and with the same torch threads. Beside each stand a copy of the
updates and one float32 Gram matrix, both measured in that process. Extra memory is the peak of the
resident set during a call, less what was resident before. Aggregators with a memory are timed from
the third round on; the memory itself is listed apart. A call of more than two seconds is not
repeated. ByzFL lies in an environment of its own, without torchvision, matplotlib and seaborn,
which it imports and its aggregators do not use.

A virtual machine may give memory that was freed back to its host, and waits for it when it is used
again (two seconds for a gigabyte on ours, thirty times what the pages themselves cost): whoever
copies the updates pays for that in each round. ``--warm`` has memory of three times the updates
touched and freed before each call, so that nobody waits for the host.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from signal import SIGKILL
from statistics import median
from time import monotonic, perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import torch
from measuring import (
    answer,
    describe_machine,
    environment_of,
    figure,
    forget_peak,
    own_bytes,
    own_peak_bytes,
    run_case,
    too_large,
    write_json,
)
from torch import Tensor

if TYPE_CHECKING:
    from fedface.aggregation.global_model import GlobalModel
    from fedface.parameters import Layout
    from fedface.report.tables import Table

SOURCES = ("fedface", "flower", "byzfl")
BYZFL = (("torch==2.13.0",), ("--no-deps", "byzfl==0.0.11"), ("numpy", "scipy", "torch==2.13.0"))
"""pip's arguments; torch first and pinned, or pip takes the newest build."""

ABSENT = ("torchvision", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "seaborn")
SLOW_SECONDS = 2.0
"""A call that takes longer is not repeated."""

Call = Callable[[], tuple[Tensor | None, int]]
"""One aggregation; returns an aggregate to look at and the bytes that the aggregator remembers."""


def backbone_of(quick: bool) -> tuple[Any, Any]:
    """Returns the network whose layout the updates have, and its config."""
    from fedface.backbones import IResNet, SmallConv

    config = SmallConv() if quick else IResNet(name="iresnet18", embedding_size=128)
    return config.build(32, torch.Generator().manual_seed(0)), config


def shapes_of(quick: bool) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the parameters."""
    from fedface.parameters import Layout

    return {slot.name: slot.shape for slot in Layout.of(backbone_of(quick)[0]).slots}


def write_updates(path: Path, n_clients: int, dim: int, seed: int) -> None:
    """Writes ``(n_clients, dim)`` float32: a shared direction and noise three times as large."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(dim, dtype=np.float32)
    with path.open("wb") as file:
        for _ in range(n_clients):
            row = rng.standard_normal(dim, dtype=np.float32)
            (1e-3 * (shared + 3 * row)).astype(np.float32).tofile(file)


def read_updates(case: Mapping[str, Any]) -> Tensor:
    """Returns the first ``n_clients`` rows of the file, in memory of this process."""
    values = np.fromfile(case["updates"], np.float32, case["n_clients"] * case["dim"])
    return torch.from_numpy(values.reshape(case["n_clients"], case["dim"]))


# ---- who aggregates


def fedface_names() -> list[str]:
    """Returns the names of every aggregator that a YAML file can ask for."""
    from typing import get_args

    from fedface.aggregation import AnyAggregator

    classes = get_args(get_args(AnyAggregator)[0])
    return [get_args(c.model_fields["name"].annotation)[0] for c in classes]


def fedface_calls(case: Mapping[str, Any], updates: Tensor) -> dict[str, Callable[[], Call]]:
    """Returns how to prepare each of fedface's aggregators."""
    from pydantic import TypeAdapter

    from fedface.aggregation import AnyAggregator
    from fedface.aggregation.cohort import Cohort, State
    from fedface.parameters import Layout

    layout = Layout.from_shapes({name: tuple(s) for name, s in case["shapes"].items()})
    n = case["n_clients"]

    def prepared(name: str) -> Call:
        aggregator = TypeAdapter(AnyAggregator).validate_python({"name": name})
        model = global_model(case["quick"], layout)
        kept: dict[str, Any] = {"state": {}, "round": 0}

        def call() -> tuple[Tensor | None, int]:
            kept["round"] += 1
            counts = torch.full((n,), 100)
            cohort = Cohort(
                updates, layout, counts, counts // 10, tuple(range(n)), kept["round"], 0, model
            )
            aggregation, state = aggregator(cohort, kept["state"])
            kept["state"] = state
            return aggregation.update, _state_bytes(state)

        return call

    def _state_bytes(state: State) -> int:
        return sum(value.numel() * value.element_size() for value in state.values())

    return {name: partial(prepared, name) for name in fedface_names()}


def global_model(quick: bool, layout: "Layout") -> "GlobalModel":
    """Returns a global model for the rules that look beyond the updates."""
    from fedface.aggregation.global_model import GlobalModel
    from fedface.heads import ArcFace
    from fedface.parameters import buffers, trainable
    from fedface.training.local import LocalTraining

    backbone, config = backbone_of(quick)
    return GlobalModel(
        weights=layout.flatten(trainable(backbone)),
        layout=layout,
        backbone=backbone,
        head=ArcFace(),
        training=LocalTraining(),
        embedding_size=config.embedding_size,
        image_size=32,
        n_rounds=1,
        buffers=buffers(backbone),
    )


def flower_calls(case: Mapping[str, Any], updates: Tensor) -> dict[str, Callable[[], Call]]:
    """Returns how to prepare each of Flower's strategies."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

    from simulations.engine.local_grid import give_identity

    give_identity()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    n, f = case["n_clients"], case["n_clients"] // 5
    strategies = {
        "Krum": Krum(num_malicious_nodes=f),
        "MultiKrum": MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f),
        "Bulyan": Bulyan(num_malicious_nodes=f),
        "FedMedian": FedMedian(),
        "FedTrimmedAvg": FedTrimmedAvg(beta=0.2),
    }

    def reply(row: Tensor) -> Message:
        arrays, start = {}, 0
        for name, shape in case["shapes"].items():
            size = int(np.prod(shape))
            arrays[name] = Array(row[start : start + size].reshape(shape).numpy())
            start += size
        metrics = MetricRecord({"num-examples": 100})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=Message(RecordDict(), 1, "train"))

    def prepared(name: str) -> Call:
        replies = [reply(row) for row in updates]  # some strategies take the arrays out of them

        def call() -> tuple[Tensor | None, int]:
            arrays, _ = strategies[name].aggregate_train(1, replies)
            if arrays is None or len(arrays) != len(case["shapes"]):
                raise RuntimeError(f"{name} gave no aggregate")
            return None, 0

        return call

    return {name: partial(prepared, name) for name in strategies}


def byzfl_calls(case: Mapping[str, Any], updates: Tensor) -> dict[str, Callable[[], Call]]:
    """Returns how to prepare each of ByzFL's rules."""
    for module in ABSENT:
        sys.modules[module] = MagicMock()
    from byzfl import (
        Average,
        CenteredClipping,
        GeometricMedian,
        Krum,
        Median,
        MultiKrum,
        TrMean,
    )

    f = case["n_clients"] // 5
    rules = {
        "Average": Average(),
        "Median": Median(),
        "TrMean": TrMean(f=f),
        "Krum": Krum(f=f),
        "MultiKrum": MultiKrum(f=f),
        "GeometricMedian": GeometricMedian(),
        "CenteredClipping": CenteredClipping(),
    }

    def prepared(name: str) -> Call:
        def call() -> tuple[Tensor | None, int]:
            if rules[name](updates).shape != updates.shape[1:]:
                raise RuntimeError(f"{name} gave no aggregate")
            return None, 0

        return call

    return {name: partial(prepared, name) for name in rules}


CALLS = {"fedface": fedface_calls, "flower": flower_calls, "byzfl": byzfl_calls}

# ---- measuring


def floors(updates: Tensor) -> dict[str, float]:
    """Returns the seconds of a copy of the updates, and of one float32 Gram matrix."""
    target = torch.empty_like(updates)
    work = {
        "memcpy_seconds": lambda: target.copy_(updates),
        "gram_seconds": lambda: updates @ updates.T,
    }
    found = {}
    for name, act in work.items():
        act()
        start = perf_counter()
        act()
        found[name] = perf_counter() - start
    return found


def touch(n_bytes: int) -> None:
    """Writes so much fresh memory and frees it: for ``--warm``."""
    np.empty(n_bytes, np.uint8).fill(1)


def measured(prepare: Callable[[], Call], n_calls: int, touched_bytes: int = 0) -> dict[str, Any]:
    """Returns what the calls of one aggregator took.

    An aggregator that remembers is timed from its third call on: from then on it has the state of
    the last round and the memory of the one before. So much memory is touched before each call.
    """
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    extra: list[int] = []
    n_remembered = 0
    call = prepare()
    while len(seconds) < n_calls:
        if touched_bytes:
            touch(touched_bytes)
        forget_peak()
        before, cpu, start = own_bytes(), process_time(), perf_counter()
        aggregate, remembered = call()
        took = perf_counter() - start
        n_remembered += remembered > 0
        if 0 < n_remembered < 3:
            continue
        seconds.append(took)
        cpu_seconds.append(process_time() - cpu)
        extra.append(max(own_peak_bytes() - before, 0))
        if aggregate is not None and not bool(aggregate.isfinite().all()):
            raise RuntimeError("the aggregate needs to be finite, found NaN or infinity")
        if sum(seconds) > SLOW_SECONDS and (not remembered or len(seconds) >= 2):
            break
        if not remembered and len(seconds) < n_calls:
            call = prepare()
    return {
        "seconds": median(seconds),
        "cpu_seconds": median(cpu_seconds),
        "extra_peak_bytes": max(extra),
        "remembered_bytes": remembered,
        "n_calls": len(seconds),
    }


def in_a_fork(work: Callable[[], dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Returns what ``work`` gives in a fork of this process, or why it gave nothing.

    This process must not have used torch's threads: their pool does not survive a fork.
    """
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            try:
                result = work()
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                result = {"error": f"{type(error).__name__}: {error} ({last.name})"[:300]}
            file.write(json.dumps(result))
            file.flush()
            os._exit(0)
        deadline = monotonic() + timeout
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if monotonic() > deadline:
                os.kill(child, SIGKILL)
                os.waitpid(child, 0)
                return {"error": f"took longer than {timeout:g} s"}
            sleep(0.01)
        file.seek(0)
        result = json.loads(file.read() or '{"error": "the process was killed"}')
        return dict(result)


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of every aggregator of one source at one number of clients."""
    torch.set_num_threads(1)
    updates = read_updates(case)
    calls = CALLS[case["source"]](case, updates)
    wanted = [name for name in calls if not case["names"] or name.lower() in case["names"]]

    def work(name: str) -> dict[str, Any]:
        torch.set_num_threads(case["n_threads"])
        found = floors(updates)
        touched = 3 * updates.numel() * updates.element_size() if case["warm"] else 0
        return {**found, **measured(calls[name], case["n_calls"], touched)}

    results = [{"name": name, **in_a_fork(partial(work, name), case["timeout"])} for name in wanted]
    for result in results:
        if "seconds" in result:
            result["per_memcpy"] = result["seconds"] / result["memcpy_seconds"]
            result["per_gram"] = result["seconds"] / result["gram_seconds"]
    return {"results": results}


def table(results: list[dict[str, Any]]) -> "Table":
    """Returns one row per aggregator and number of clients."""
    from fedface.report.tables import MISSING, Table

    rows = []
    for r in results:
        start = (str(r["n_clients"]), r["source"], r["name"])
        if "seconds" not in r:
            rows.append((*start, r.get("left_out") or r["error"], *[MISSING] * 6))
            continue
        remembered = r["remembered_bytes"]
        rows.append(
            (
                *start,
                figure(r["seconds"]),
                figure(r["cpu_seconds"]),
                f"{r['extra_peak_bytes'] / 1e6:.0f}",
                f"{remembered / 1e6:.1f}" if remembered else MISSING,
                figure(r["per_memcpy"]),
                figure(r["per_gram"]),
                str(r["n_calls"]),
            )
        )
    titles = ("s", "CPU s", "extra peak MB", "remembered MB", "/ memcpy", "/ Gram", "calls")
    return Table(("clients", "source", "aggregator", *titles), tuple(rows))


def run(options: argparse.Namespace) -> "Table":
    """Measures every case, writes the JSON and returns the table."""
    machine, results = describe_machine(), []
    shapes = shapes_of(options.quick)
    dim = sum(int(np.prod(shape)) for shape in shapes.values())
    python = dict.fromkeys(SOURCES, sys.executable)
    if "byzfl" in options.sources:
        python["byzfl"] = environment_of("byzfl", BYZFL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "updates"
        write_updates(path, max(options.clients), dim, options.seed)
        for n_clients in options.clients:
            for source in options.sources:
                case = {
                    "source": source,
                    "n_clients": n_clients,
                    "dim": dim,
                    "shapes": shapes,
                    "updates": str(path),
                    "names": [name.lower() for name in options.names],
                    "n_threads": options.threads,
                    "n_calls": options.calls,
                    "timeout": options.timeout,
                    "quick": options.quick,
                    "warm": options.warm,
                }
                results += _results(case, python[source], options.threads)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(
        options.output,
        "aggregators",
        {**machine, "seed": options.seed},
        {**settings, "dim": dim, "n_tensors": len(shapes)},
        {"results": results},
    )
    return table(results)


def _results(case: Mapping[str, Any], python: str, threads: int) -> list[dict[str, Any]]:
    """The results of one source, each with what it is of."""
    what = {"source": case["source"], "n_clients": case["n_clients"]}
    if why := too_large(5 * 4 * case["n_clients"] * case["dim"] + 1e9):
        return [{**what, "name": "all", "left_out": why}]
    found = run_case(
        Path(__file__), case, python, {"OMP_NUM_THREADS": str(threads)}, timeout=3600.0
    )
    if "error" in found:
        return [{**what, "name": "all", "error": found["error"]}]
    return [{**what, **result} for result in found["results"]]


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help="touch memory before each call")
    parser.add_argument("--quick", action="store_true", help="twelve clients, small network")
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--names", nargs="+", default=[], help="only these aggregators")
    parser.add_argument("--calls", type=int, default=5, help="the figures are their median")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one aggregator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/aggregators.json"))
    options = parser.parse_args(arguments)
    if options.case is not None:
        answer(measure(options.case))
        return
    if options.quick:
        options.clients, options.calls = [12], 2
    sys.stdout.write(run(options).markdown())
    sys.stderr.write(f"figures: {options.output}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
