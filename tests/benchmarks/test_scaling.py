import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from simulations.engine.costs import makespan
from simulations.engine.local_grid import give_identity
from tests.benchmarks.by_path import script

for name in ("measuring", "svg_chart", "engine_overhead"):
    script(name)
scaling = script("scaling")


def test_the_fit_is_exact_on_a_line():
    line = scaling.fit([(x, 3 - 0.5 * x) for x in (1, 2, 10, 1000)])
    assert line["a"] == pytest.approx(3)
    assert line["b"] == pytest.approx(-0.5)
    assert line["r2"] == pytest.approx(1)
    assert scaling.fit([(1, 7), (2, 7)]) == {"a": 7, "b": 0, "r2": None}
    with pytest.raises(ValueError, match="two different x, got 1"):
        scaling.fit([(1, 7), (1, 8)])


def test_the_fit_is_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(size=20)
    line = scaling.fit(list(zip(x, y, strict=True)))
    slope, intercept = np.polyfit(x, y, 1)
    assert (line["a"], line["b"]) == pytest.approx((intercept, slope))
    assert line["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def by_hand(costs, n_workers):
    """List scheduling as defined: the next piece of work to the worker that is free first."""
    free = [0.0] * n_workers
    for cost in costs:
        worker = min(range(n_workers), key=lambda w: free[w])
        free[worker] += cost
    return max(free)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 8])
def test_list_scheduling_is_the_loop_by_hand(n_workers):
    costs = np.random.default_rng(n_workers).lognormal(0, 1, 40).tolist()
    assert scaling.in_order(costs, n_workers) == by_hand(costs, n_workers)
    assert makespan(costs, n_workers) == by_hand(sorted(costs, reverse=True), n_workers)


def test_simulated_schedules_hold_grahams_bounds():
    recorded = np.random.default_rng(0).lognormal(0, 1, 50).tolist()
    found = scaling.schedules(recorded, [1, 10, 2_000], [1, 2, 8], seed=1)
    assert [(f["n_clients"], f["n_workers"]) for f in found] == [
        (n, w) for n in (1, 10, 2_000) for w in (1, 2, 8)
    ]
    for f in found:
        assert f["bound_seconds"] <= f["seconds"] * (1 + 1e-12)
        assert f["in_order_seconds"] <= (2 - 1 / f["n_workers"]) * f["bound_seconds"] * (1 + 1e-9)
        assert f["efficiency"] <= 1 + 1e-12
        if f["n_clients"] == 2_000:
            assert f["efficiency"] > 0.999
    assert found == [
        {**g, "planning_seconds": f["planning_seconds"]}
        for f, g in zip(
            found, scaling.schedules(recorded, [1, 10, 2_000], [1, 2, 8], seed=1), strict=True
        )
    ]


def reply(value, name="a"):
    give_identity()
    request = Message(RecordDict(), 1, "train")
    if value is None:
        return Message(Error(0, "died"), reply_to=request)
    arrays = ArrayRecord({name: Array(np.array(value, np.float32))})
    return Message(RecordDict({"arrays": arrays}), reply_to=request)


def test_a_digest_changes_with_any_reply():
    base = scaling.digest({0: reply([1, 2]), 1: reply([3])})
    assert base == scaling.digest({1: reply([3]), 0: reply([1, 2])})
    others = [
        {0: reply([1, 2.000001]), 1: reply([3])},
        {0: reply([1, 2]), 2: reply([3])},
        {0: reply([1, 2]), 1: reply(None)},
        {0: reply([1, 2]), 1: reply([3], name="b")},
        {0: reply([[1, 2]]), 1: reply([3])},
        {0: reply([1, 2])},
    ]
    assert len({base, *map(scaling.digest, others)}) == 1 + len(others)


@pytest.fixture
def measured(monkeypatch):
    """What the cases answer, without an engine."""

    def answer(options, kind, **case):
        if kind == "clients":
            return {"points": [(n, 0.1 + 0.01 * n) for n in case["n_clients"]]}
        if kind == "parameters":
            points = [(n, 0.1 + 1e-7 * n) for n in case["n_parameters"]]
            return {"points": points, "left_out": {}}
        if kind == "workers":
            return {**case, "seconds": 2 / case["n_workers"], "costs": [0.1, 0.2, 0.4]}
        if kind == "soak":
            rounds = range(case["every"], case["n_rounds"] + 1, case["every"])
            return {"points": [(n, 10**9 + 512 * n + (n <= 50) * 10**8) for n in rounds]}
        digests = [str(i) for i in range(case["n_rounds"])]
        if case["kill_every"]:
            digests[-1] = "other"
        failed = ["died"] if case["kill_every"] else []
        return {"digests": digests, "n_killed": 3, "failed": failed, "seconds": 0.5}

    monkeypatch.setattr(scaling, "_case", answer)


def test_growth_is_tabled_fitted_and_drawn(measured, tmp_path, capsys):
    scaling.main(["--workers", "2", "--output", str(tmp_path / "scaling.json")])
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert content["fits"]["clients"] == pytest.approx({"a": 0.1, "b": 0.01, "r2": 1})
    assert content["fits"]["workers"] == pytest.approx({"a": 0, "b": 2, "r2": 1}, abs=1e-12)
    assert content["speedups"] == {"1": 1, "2": 2}
    assert [p[0] for p in content["curves"]["clients"]] == [10, 30, 100, 300, 1000]
    assert content["schedules"][-1]["n_clients"] == 100_000
    images = sorted(path.name for path in tmp_path.glob("*.svg"))
    names = ("clients", "parameters", "schedule", "workers")
    assert images == [f"scaling_{name}.svg" for name in names]
    out = capsys.readouterr().out
    assert "| workers | 2 | 1 | 2.00 x one worker |" in out
    assert out.count("\n| clients |") == 5


def test_a_soaks_slope_leaves_the_warm_up_out(measured, tmp_path, capsys):
    scaling.main(["--soak", "--output", str(tmp_path / "soak.json")])
    content = json.loads((tmp_path / "soak.json").read_text())
    assert content["settings"]["soak"] == 500
    assert len(content["soak"]["points"]) == 50
    assert content["fit"]["b"] == pytest.approx(0.5)
    assert "| 500 | 1100.0 | 1000.3 | 0.500 | 1 |" in capsys.readouterr().out
    assert (tmp_path / "soak.svg").exists()


def test_kills_are_counted_and_compared(measured, tmp_path, capsys):
    output = tmp_path / "kill.json"
    scaling.main(["--kill-every", "5", "--rounds", "10", "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["rounds_alike"] == 9
    assert "| 10 | 3 | 1 | 9/10 | 0.5 | 0.5 |" in capsys.readouterr().out


def test_a_case_that_fails_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "run_case", lambda *a, **k: {"error": "out of memory"})
    with pytest.raises(RuntimeError, match="clients: out of memory"):
        scaling.main(["--output", str(tmp_path / "x.json")])


@pytest.mark.slow
def test_killed_workers_change_no_reply(tmp_path):
    threads = torch.get_num_threads()
    output = tmp_path / "kill.json"
    arguments = ["--quick", "--kill-every", "2", "--rounds", "6", "--workers", "2"]
    scaling.main([*arguments, "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["disturbed"]["n_killed"] == 3
    assert content["disturbed"]["failed"] == []
    assert content["rounds_alike"] == 6
    assert torch.get_num_threads() == threads
