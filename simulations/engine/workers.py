"""What every engine on Ray needs: the workers' environment, a client's resources, how many fit."""

import os
import warnings
from collections.abc import Sequence
from math import ceil, floor
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from fedface.config import Config, ConfigError

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts workers at the lowest priority but four; here they do the work.
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray would note every call for its dashboard, and memory would grow from round to round.
    "RAY_task_events_report_interval_ms": "0",
    "OMP_NUM_THREADS": "1",
    # glibc gives freed activations back to the kernel at each step; the page faults slow small
    # nets down.
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
}


class EngineFailed(RuntimeError):
    """Flower or Ray broke down; the run can be resumed."""


class ClientResources(Config):
    """What one client takes while it trains."""

    num_cpus: PositiveInt = 1
    num_gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of one GPU; Ray throttles by it, it does not cap memory. Null shares the GPUs that
    there are evenly among the clients that the CPUs can serve at a time; 0 trains on the CPU."""


def slots(
    cpus: int,
    gpus: float | None,
    nodes: Sequence[tuple[float, float]],
    max_parallel: int | None = None,
    fields: tuple[str, str] = ("workers.cpus", "workers.gpus"),
) -> tuple[int, float]:
    """Returns how many workers run at a time, and the share of a GPU that each gets.

    Args:
        cpus: CPUs that one worker takes.
        gpus: Share of a GPU that one takes; None shares those that there are evenly.
        nodes: The (CPUs, GPUs) of each machine; a worker lies on one machine and one GPU.
        max_parallel: Workers at a time at most; None for as many as fit.
        fields: What the configuration calls ``cpus`` and ``gpus``, for errors.

    Raises:
        ConfigError: If not even one worker fits.
    """
    by_cpu = [int(found // cpus) for found, _ in nodes]
    if not any(by_cpu):
        most = max((found for found, _ in nodes), default=0)
        raise ConfigError(f"{fields[0]}: needed {cpus} CPUs for one worker, found {most:g}")
    limit = sum(by_cpu) if max_parallel is None else max_parallel
    share, n_gpus = gpus, sum(int(found) for _, found in nodes)
    if share is None:
        wanted = min(sum(by_cpu), limit)
        share = 1 / ceil(wanted / n_gpus) if n_gpus else 0.0
    share = floor(share * 10_000) / 10_000  # Ray's resolution
    if share > 0:
        each = floor(1 / share)
        by_gpu = (min(n, int(found) * each) for n, (_, found) in zip(by_cpu, nodes, strict=True))
        limit = min(limit, sum(by_gpu))
    if limit < 1:
        raise ConfigError(f"{fields[1]}: needed {share:g} of a GPU for one worker, found no GPU")
    return min(limit, sum(by_cpu)), share


def machines(nodes: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Returns the (CPUs, GPUs) of every living node of ``ray.nodes()``."""
    there = (node["Resources"] for node in nodes if node["Alive"])
    return [(found.get("CPU", 0), found.get("GPU", 0)) for found in there]


def ray_arguments(num_cpus: int | None = None, address: str | None = None) -> dict[str, Any]:
    """Returns the arguments of a quiet ``ray.init``, on this machine or at a cluster's address."""
    arguments: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is not None:
        return arguments | {"address": address}
    arguments |= {"include_dashboard": False}
    return arguments if num_cpus is None else arguments | {"num_cpus": num_cpus}


def prepare_environment() -> dict[str, str]:
    """Sets what Ray and its workers read from the environment; returns it for the workers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    return {name: os.environ[name] for name in ENVIRONMENT}
