"""Rounds per second per core of the same federated training under four simulators.

    python benchmarks/training_throughput.py [--quick] [--simulators resident flower plain pfl]
        [--settings stock kept sites] [--output FILE.json]

50 of 100 clients a round, each 128 images of 3 x 32 x 32, one epoch of SGD at batch size 32, a
small CNN of 114,225 parameters, FedAvg. The resident engine, Flower's engine, a plain loop and
pfl-research (in an environment of its own, made on the first run) train the very same network with
the same local steps: all but pfl by the one loop below, pfl by its own. Workers have one thread
each; where a simulator can use the cores in several ways (pfl, plain loop: threads or processes)
all are measured and the best counts.

Each is measured as its users find it (``stock``: images and weights contiguous, glibc's own
allocator, Flower's workers at Ray's low priority and noted by it), with glibc keeping freed memory
(``kept``: the engines of fedface do that to their workers), and with channels last too, as
fedface's sites train (``sites``).

This file is also what pfl's interpreter runs, which has neither fedface nor Flower: they are
imported where they are needed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measuring import (
    MALLOC,
    RESULT,
    answer,
    describe_machine,
    environment_of,
    figure,
    run_case,
    tree_cpu_seconds,
    write_json,
)
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    from fedface.report.tables import Table

SIMULATORS = ("resident", "flower", "plain", "pfl")
PFL = (("torch==2.13.0",), ("pfl[pytorch]==0.6.0", "torch==2.13.0"))
"""pip's arguments; torch first and pinned, or pip takes the newest build."""

SETTINGS = {"stock": (False, False), "kept": (True, False), "sites": (True, True)}
"""Name -> (whether glibc keeps freed memory, whether images and weights are channels last)."""

OURS = (*MALLOC, "RAY_worker_niceness", "RAY_task_events_report_interval_ms")
"""What fedface sets for workers of Flower's engine, and who installs Flower does not."""

LEARNING_RATE, BATCH_SIZE, N_IMAGES = 0.05, 32, 128


class SmallNetwork(nn.Sequential):
    """Two convolutions and two linear layers; ``loss`` and ``metrics`` are what pfl asks for."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2048, 53),
            nn.ReLU(),
            nn.Linear(53, 10),
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy in training mode."""
        return functional.cross_entropy(self.train()(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Measures nothing."""
        return {}


def memory_format(settings: str) -> torch.memory_format:
    """Returns how images and weights lie in memory."""
    return torch.channels_last if SETTINGS[settings][1] else torch.contiguous_format


def network(seed: int, settings: str) -> SmallNetwork:
    """Returns the network with weights that ``seed`` fixes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = SmallNetwork()
    model.to(memory_format=memory_format(settings))  # type: ignore[call-overload]
    return model


def images_of(client: int, seed: int, settings: str) -> tuple[Tensor, Tensor]:
    """Returns a client's ``(128, 3, 32, 32)`` images and ``(128,)`` labels."""
    rng = np.random.default_rng([seed, client])
    images = torch.from_numpy(rng.standard_normal((N_IMAGES, 3, 32, 32), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, N_IMAGES))
    return images.contiguous(memory_format=memory_format(settings)), labels


Data = dict[int, tuple[Tensor, Tensor]]
"""Every client's images and labels."""


@lru_cache(maxsize=1)
def prepared(seed: int, n_clients: int, settings: str) -> tuple[SmallNetwork, Data]:
    """Returns this process's network, and all that its clients may train on."""
    data = {client: images_of(client, seed, settings) for client in range(n_clients)}
    return network(seed, settings), data


def prepared_for(case: Mapping[str, Any]) -> tuple[SmallNetwork, Data]:
    """Returns what :func:`prepared` returns for a case."""
    return prepared(case["seed"], case["n_clients"], case["settings"])


def cohort_of(server_round: int, case: Mapping[str, Any]) -> list[int]:
    """Returns the clients of a round, ascending."""
    rng = np.random.default_rng([case["seed"], 7, server_round])
    return sorted(rng.choice(case["n_clients"], case["n_sampled"], replace=False).tolist())


def batches(data: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields one epoch, in order as pfl does."""
    for start in range(0, len(data[0]), BATCH_SIZE):
        yield data[0][start : start + BATCH_SIZE], data[1][start : start + BATCH_SIZE]


def train(model: SmallNetwork, data: tuple[Tensor, Tensor]) -> None:
    """One client's local training, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for images, labels in batches(data):
        optimizer.zero_grad(set_to_none=True)
        model.loss(images, labels).backward()
        optimizer.step()


def plain(case: Mapping[str, Any]) -> Iterator[None]:
    """A plain loop: one process, no messages, a running sum of the updates."""
    model, data = prepared_for(case)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    for server_round in range(case["n_rounds"]):
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in cohort_of(server_round, case):
            _load(model, weights)
            train(model, data[client])
            for name, value in model.named_parameters():
                total[name].add_(value.detach() - weights[name])
        for name, value in weights.items():
            value.add_(total[name], alpha=1 / case["n_sampled"])
        yield
    _check(weights)


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name])


def _check(weights: Mapping[str, Tensor]) -> None:
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RuntimeError("training needs to stay finite, found NaN or infinity")


def app(case: Mapping[str, Any]) -> "ClientApp":
    """Returns the ClientApp of the engines; a worker keeps the network and its clients' images."""
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from clients.arrays import to_record, to_tensors

    client_app = ClientApp()

    @client_app.query()
    def query(message: "Message", context: "Context") -> "Message":
        """Says which partition this node holds."""
        metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @client_app.train()
    def train_client(message: "Message", context: "Context") -> "Message":
        """Trains from the received weights; replies with the update."""
        model, data = prepared_for(case)
        weights = to_tensors(message.content.array_records["arrays"])
        _load(model, weights)
        train(model, data[int(context.node_config["partition-id"])])
        update = {n: value.detach() - weights[n] for n, value in model.named_parameters()}
        counts = {"num-examples": N_IMAGES, "num-steps": N_IMAGES // BATCH_SIZE, "loss": 0.0}
        records = {"arrays": to_record(update), "metrics": MetricRecord(counts)}
        return Message(RecordDict(records), reply_to=message)

    return client_app


def with_engine(case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains through an engine's messages and the product's server path."""
    from engine_overhead import TIMEOUT, engine_named
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

    from fedface.aggregation import Mean
    from fedface.aggregation.screening import ReplyLimits
    from fedface.parameters import Layout, trainable
    from simulations.engine.workers import ENVIRONMENT
    from strategies.cohorts import exchange, roll_call
    from strategies.records import to_cohort, to_record, to_update

    if not SETTINGS[case["settings"]][0]:
        for name in OURS:
            ENVIRONMENT.pop(name, None)
    model = network(case["seed"], case["settings"])
    layout, found = Layout.of(model), {"weights": trainable(model)}

    def rounds(grid: Grid) -> Iterator[None]:
        roster, weights = roll_call(grid, case["n_clients"], TIMEOUT), found["weights"]
        for server_round in range(case["n_rounds"]):
            arrays = to_record(weights)
            messages = {
                client: Message(RecordDict({"arrays": arrays}), roster[client], "train")
                for client in cohort_of(server_round, case)
            }
            replies = exchange(grid, messages, TIMEOUT)
            updates = [to_update(c, r, layout, {}, ReplyLimits()) for c, r in replies.items()]
            if len(updates) < case["n_sampled"]:
                raise RuntimeError(f"needed {case['n_sampled']} replies, got {len(updates)}")
            aggregation, _ = Mean()(to_cohort(updates, layout, server_round + 1, 0), {})
            new = layout.unflatten(layout.flatten(weights) + aggregation.update)
            weights = found["weights"] = {name: value.clone() for name, value in new.items()}
            yield
        _check(weights)

    figures: dict[str, Any] = {}
    engine = engine_named(case["simulator"], case["n_processes"])
    engine.run(
        lambda grid: figures.update(timed_rounds(lambda: rounds(grid), tree_cpu_seconds)),
        app(case),
        case["n_clients"],
    )
    return figures


def with_pfl(case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains by pfl-research; under torchrun every process calls this and one of them counts."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops import get_ops
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    module, data = prepared_for(case)
    users = FederatedDataset.from_slices(
        data, get_user_sampler("minimize_reuse", list(range(case["n_clients"])))
    )
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, torch.optim.SGD, central)
    ends: list[tuple[float, float]] = [(perf_counter(), process_time())]

    class Clock(TrainingProcessCallback):
        """Notes when each round ended."""

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            ends.append((perf_counter(), process_time()))
            return False, Metrics()

    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=case["n_rounds"],
            evaluation_frequency=case["n_rounds"] + 1,
            train_cohort_size=case["n_sampled"],
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH_SIZE
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
        send_metrics_to_platform=False,
    )
    _check({name: value.detach() for name, value in module.named_parameters()})
    pairs = list(pairwise(ends))
    world = get_ops().distributed.world_size
    cpu = [world * (b[1] - a[1]) for a, b in pairs]
    return figures_of([b[0] - a[0] for a, b in pairs], cpu)


def timed_rounds(
    rounds: Callable[[], Iterator[None]], cpu_clock: Callable[[], float]
) -> dict[str, Any]:
    """Returns the figures of the rounds that the iterator makes, one at each step."""
    seconds, cpu_seconds = [], []
    last_cpu, last = cpu_clock(), perf_counter()
    for _ in rounds():
        now, now_cpu = perf_counter(), cpu_clock()
        seconds.append(now - last)
        cpu_seconds.append(now_cpu - last_cpu)
        last_cpu, last = cpu_clock(), perf_counter()
    return figures_of(seconds, cpu_seconds)


def figures_of(seconds: list[float], cpu_seconds: list[float]) -> dict[str, Any]:
    """Returns the first round apart, the median of the later ones, their mean CPU seconds."""
    return {
        "first_round_seconds": seconds[0],
        "round_seconds": median(seconds[1:]),
        "cpu_seconds": sum(cpu_seconds[1:]) / len(cpu_seconds[1:]),
        "all_seconds": seconds,
        "versions": _versions("torch", "pfl", "flwr", "ray", "numpy"),
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure(case: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a case's figures; runs in the case's own process."""
    torch.set_num_threads(case["n_threads"])
    if case["simulator"] == "plain":
        return timed_rounds(lambda: plain(case), process_time)
    return with_pfl(case) if case["simulator"] == "pfl" else with_engine(case)


def launch(case: Mapping[str, Any]) -> dict[str, Any]:
    """Starts pfl's processes by torchrun, waits for them and returns what the first one said."""
    own = json.dumps({**case, "n_processes": 1, "launched": True})
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={case['n_processes']}", __file__, "--case", own),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        raise RuntimeError(f"torchrun ended with {done.returncode}: {' '.join(errors[:1])}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix(RESULT))
    return result


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what is to be measured; n processes x m threads fill the cores."""
    shared = {
        "n_clients": 100,
        "n_sampled": 4 if options.quick else 50,
        "n_rounds": 2 if options.quick else options.rounds,
        "seed": options.seed,
    }
    alone, threads, processes = (1, 1), (1, options.cores), (options.cores, 1)
    ways = {
        "resident": [processes],
        "flower": [processes],
        "plain": [alone, threads],
        "pfl": [threads, processes],
    }
    return [
        {
            "simulator": name,
            "settings": settings,
            "n_processes": n_processes,
            "n_threads": n_threads,
            **shared,
        }
        for name in options.simulators
        # The resident engine always keeps what is freed.
        for settings in options.settings
        if (name, settings) != ("resident", "stock")
        for n_processes, n_threads in dict.fromkeys(ways[name])
    ]


def per_core(result: Mapping[str, Any]) -> float:
    """Returns rounds per second per core used."""
    return float(1 / (result["round_seconds"] * result["n_processes"] * result["n_threads"]))


def best(results: list[dict[str, Any]], cores: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the fastest way of using all ``cores``, by simulator and settings."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for r in results:
        if "round_seconds" not in r or r["n_processes"] * r["n_threads"] != cores:
            continue
        key = r["simulator"], r["settings"]
        if key not in found or r["round_seconds"] < found[key]["round_seconds"]:
            found[key] = r
    return found


def table(results: list[dict[str, Any]], cores: int) -> "Table":
    """Returns one row per case; the best way of each simulator to use all cores is marked."""
    from fedface.report.tables import MISSING, Table

    fastest = best(results, cores)
    resident = fastest.get(("resident", "sites"))
    rows = []
    for r in results:
        start = (r["simulator"], r["settings"], f"{r['n_processes']} x {r['n_threads']}")
        if "round_seconds" not in r:
            rows.append((*start, r["error"], *[MISSING] * 6))
            continue
        marked = fastest.get((r["simulator"], r["settings"])) is r
        rows.append(
            (
                *start,
                figure(r["round_seconds"]),
                figure(1 / r["round_seconds"]),
                figure(per_core(r)),
                figure(r["cpu_seconds"]),
                figure(r["first_round_seconds"]),
                figure(r["round_seconds"] / resident["round_seconds"]) if resident else MISSING,
                "best" if marked else "",
            )
        )
    titles = ("s / round", "rounds / s", "rounds / s / core", "CPU s", "first round s")
    start_titles = ("simulator", "settings", "processes x threads")
    return Table((*start_titles, *titles, "/ resident, sites", ""), tuple(rows))


def run(options: argparse.Namespace) -> "Table":
    """Measures every case, writes the JSON and returns the table."""
    machine = describe_machine()
    python = environment_of("pfl", PFL) if "pfl" in options.simulators else sys.executable
    results = [
        run_case(
            Path(__file__),
            case,
            python if case["simulator"] == "pfl" else sys.executable,
            {
                **(MALLOC if SETTINGS[case["settings"]][0] else {}),
                "OMP_NUM_THREADS": str(case["n_threads"]),
            },
        )
        for case in cases(options)
    ]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    fastest = best(results, options.cores)
    write_json(
        options.output,
        "training_throughput",
        {**machine, "seed": options.seed},
        {**settings, "n_parameters": sum(p.numel() for p in SmallNetwork().parameters())},
        {
            "results": results,
            "best": {
                " ".join(key): {
                    "processes": r["n_processes"],
                    "threads": r["n_threads"],
                    "rounds_per_second": 1 / r["round_seconds"],
                    "rounds_per_second_per_core": per_core(r),
                }
                for key, r in fastest.items()
            },
        },
    )
    return table(results, options.cores)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="two rounds of four clients")
    parser.add_argument("--simulators", nargs="+", choices=SIMULATORS, default=list(SIMULATORS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=12, help="the first one is apart")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmarks/training_throughput.json")
    )
    options = parser.parse_args(arguments)
    if options.case is None:
        sys.stdout.write(run(options).markdown())
        sys.stderr.write(f"figures: {options.output}\n")
    elif options.case["n_processes"] > 1 and options.case["simulator"] == "pfl":
        answer(launch(options.case))
    else:
        answer(measure(options.case))


if __name__ == "__main__":
    main(sys.argv[1:])
