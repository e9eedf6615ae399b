"""What engines on Ray share: how many workers fit, and what they find in their environment."""

import os
from typing import Any

import pytest

from fedface.config import ConfigError
from simulations.engine import FlowerEngine, InProcessEngine, ResidentEngine
from simulations.engine.workers import (
    ENVIRONMENT,
    machines,
    prepare_environment,
    ray_arguments,
    slots,
)


@pytest.mark.parametrize(
    ("asked", "nodes", "expected"),
    [
        ({}, [(4, 0)], (4, 0.0)),
        ({"cpus": 2}, [(5, 0), (3, 0)], (3, 0.0)),
        ({"max_parallel": 3}, [(8, 0)], (3, 0.0)),
        ({}, [(8, 2)], (8, 0.25)),
        ({}, [(3, 2)], (3, 0.5)),
        ({"gpus": 0}, [(8, 2)], (8, 0.0)),
        ({"gpus": 0.4}, [(16, 2)], (4, 0.4)),
        ({"gpus": 1}, [(16, 2)], (2, 1.0)),
    ],
)
def test_workers_at_a_time(
    asked: dict[str, Any], nodes: list[tuple[float, float]], expected: tuple[int, float]
) -> None:
    n_slots, share = slots(nodes=nodes, **({"cpus": 1, "gpus": None} | asked))
    assert (n_slots, share) == expected


def test_three_workers_on_a_gpu_all_fit() -> None:
    n_slots, share = slots(1, None, [(3, 1)])
    assert n_slots == 3 and 3 * share <= 1 < 3 * share + 0.01


def test_a_worker_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workers.cpus: needed 4 CPUs for one worker, found 2"):
        slots(4, None, [(2, 0), (2, 0)])
    with pytest.raises(ConfigError, match=r"workers.gpus: needed 1 of a GPU for one worker"):
        slots(1, 1, [(2, 0)])


def test_only_living_machines_count() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {}},
    ]
    assert machines(nodes) == [(4.0, 1.0), (0, 0)]


def test_a_cluster_is_joined_as_it_is() -> None:
    assert "num_cpus" not in ray_arguments(4, "auto")
    assert ray_arguments(4)["num_cpus"] == 4
    assert "num_cpus" not in ray_arguments()


def test_the_environment_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("RAY_DEDUP_LOGS", raising=False)
    environment = prepare_environment()
    assert environment["OMP_NUM_THREADS"] == "7"
    assert os.environ["RAY_DEDUP_LOGS"] == environment["RAY_DEDUP_LOGS"] == "0"
    assert set(environment) == set(ENVIRONMENT)


def test_the_server_uses_what_the_workers_leave() -> None:
    assert InProcessEngine().server_threads == 1
    assert FlowerEngine(num_cpus=3).server_threads == ResidentEngine(num_cpus=3).server_threads == 3
    assert FlowerEngine().server_threads == os.cpu_count()
