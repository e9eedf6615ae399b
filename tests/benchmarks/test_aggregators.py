import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.by_path import script

script("measuring")
aggregators = script("aggregators")


def test_every_aggregator_of_the_union_is_measured():
    names = aggregators.fedface_names()
    assert {"mean", "ariba", "ariba_literal", "krum", "fltrust"} <= set(names)
    assert len(names) == len(set(names)) >= 22


def test_updates_share_a_direction(tmp_path):
    path = tmp_path / "updates"
    aggregators.write_updates(path, 6, 20_000, seed=0)
    case = {"updates": str(path), "n_clients": 4, "dim": 20_000}
    updates = aggregators.read_updates(case)
    assert updates.shape == (4, 20_000)
    cosines = torch.corrcoef(updates)[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(cosines, torch.full((12,), 0.1), atol=0.04, rtol=0)


class Aggregator:
    """Remembers ``remembered`` bytes and allocates ``megabytes`` for a moment."""

    def __init__(self, remembered=0, megabytes=0, seconds=0.0):
        self.remembered, self.megabytes, self.seconds = remembered, megabytes, seconds
        self.prepared, self.calls, self.aggregate = 0, 0, None

    def prepare(self):
        self.prepared += 1
        return self.call

    def call(self):
        self.calls += 1
        aggregators.sleep(self.seconds)
        block = np.ones(self.megabytes << 17)
        return self.aggregate, self.remembered if len(block) >= 0 else 0


def test_an_aggregator_without_memory_is_prepared_for_every_call():
    one = Aggregator(megabytes=64)
    found = aggregators.measured(one.prepare, 3)
    assert (one.prepared, one.calls, found["n_calls"]) == (3, 3, 3)
    assert 60 << 20 < found["extra_peak_bytes"] < 80 << 20
    assert found["remembered_bytes"] == 0


def test_an_aggregator_with_memory_is_timed_from_its_third_round():
    one = Aggregator(remembered=99)
    found = aggregators.measured(one.prepare, 2)
    assert (one.prepared, one.calls, found["n_calls"]) == (1, 4, 2)
    assert found["remembered_bytes"] == 99


def test_an_aggregate_that_is_not_finite_is_no_measurement():
    one = Aggregator()
    one.aggregate = torch.tensor([1.0, torch.nan])
    with pytest.raises(RuntimeError, match="needs to be finite"):
        aggregators.measured(one.prepare, 1)


def test_memory_is_touched_before_each_call_if_that_is_asked(monkeypatch):
    touched = []
    monkeypatch.setattr(aggregators, "touch", touched.append)
    aggregators.measured(Aggregator().prepare, 2)
    assert touched == []
    aggregators.measured(Aggregator().prepare, 2, 1000)
    assert touched == [1000, 1000]


@pytest.mark.parametrize(("remembered", "n_calls"), [(0, 1), (9, 2)])
def test_slow_calls_are_not_repeated(remembered, n_calls, monkeypatch):
    monkeypatch.setattr(aggregators, "SLOW_SECONDS", 0.01)
    found = aggregators.measured(Aggregator(remembered, seconds=0.02).prepare, 5)
    assert found["n_calls"] == n_calls
    assert found["seconds"] >= 0.02


def test_a_fork_that_fails_or_hangs_says_so():
    def wrong():
        raise ValueError("needs more clients")

    assert aggregators.in_a_fork(lambda: {"x": 1}, 10) == {"x": 1}
    assert aggregators.in_a_fork(wrong, 10) == {"error": "ValueError: needs more clients (wrong)"}
    assert aggregators.in_a_fork(lambda: aggregators.sleep(60), 0.1) == {
        "error": "took longer than 0.1 s"
    }
    died = aggregators.in_a_fork(lambda: aggregators.os.kill(aggregators.os.getpid(), 9), 10)
    assert died == {"error": "the process was killed"}


def small_case(path, source, names):
    shapes = aggregators.shapes_of(True)
    dim = sum(int(np.prod(shape)) for shape in shapes.values())
    aggregators.write_updates(path, 12, dim, 0)
    return {
        "source": source,
        "n_clients": 12,
        "dim": dim,
        "shapes": shapes,
        "updates": str(path),
        "names": names,
        "quick": True,
        "warm": True,
    }


@pytest.mark.parametrize(
    ("source", "name"),
    [("fedface", "mean"), ("fedface", "flame"), ("flower", "FedMedian"), ("flower", "Krum")],
)
def test_aggregators_aggregate(source, name, tmp_path):
    case = small_case(tmp_path / "updates", source, [])
    updates = aggregators.read_updates(case)
    call = aggregators.CALLS[source](case, updates)[name]()
    aggregate, remembered = call()
    assert remembered == 0
    assert aggregate is None or aggregate.shape == updates.shape[1:]


def test_the_command_writes_table_and_json(monkeypatch, tmp_path, capsys):
    asked = []

    def run_case(path, case, python, environment, timeout):
        asked.append((case["source"], case["n_clients"], python, environment))
        assert Path(case["updates"]).stat().st_size == 4 * 12 * case["dim"]
        good = {
            "name": "krum",
            "seconds": 1.5,
            "cpu_seconds": 2.0,
            "extra_peak_bytes": 5_000_000,
            "remembered_bytes": 0,
            "per_memcpy": 30.0,
            "per_gram": 10.0,
            "n_calls": 5,
        }
        if case["source"] == "byzfl":
            return {**case, "error": "ended with code 1"}
        return {**case, "results": [good, {"name": "ariba", "error": "ValueError: x"}]}

    monkeypatch.setattr(aggregators, "run_case", run_case)
    monkeypatch.setattr(aggregators, "environment_of", lambda *_: "/byzfl/python")
    output = tmp_path / "out.json"
    aggregators.main(["--quick", "--threads", "2", "--output", str(output)])
    content = json.loads(output.read_text())
    assert [(r["source"], r["name"]) for r in content["results"]] == [
        ("fedface", "krum"),
        ("fedface", "ariba"),
        ("flower", "krum"),
        ("flower", "ariba"),
        ("byzfl", "all"),
    ]
    assert asked[-1] == ("byzfl", 12, "/byzfl/python", {"OMP_NUM_THREADS": "2"})
    out = capsys.readouterr().out
    assert "| 12 | fedface | krum | 1.5 | 2 | 5 | - | 30 | 10 | 5 |" in out
    assert "| 12 | byzfl | all | ended with code 1 |" in out
