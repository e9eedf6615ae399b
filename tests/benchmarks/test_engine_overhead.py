import json

import pytest
import torch

from simulations.engine import InProcessEngine
from strategies.cohorts import roll_call
from tests.benchmarks.by_path import script

script("measuring")
overhead = script("engine_overhead")


def case(engine, **more):
    return {
        "engine": engine,
        "n_parameters": 600,
        "n_clients": 3,
        "n_rounds": 3,
        "n_memory_rounds": 1,
        "n_workers": 1,
        "server_threads": 1,
        "seed": 0,
        **more,
    }


@pytest.mark.parametrize("n_parameters", [60, 100, 1_000_000])
def test_the_layout_has_sixty_tensors_that_sum_to_the_size(n_parameters):
    layout = overhead.layout_of(n_parameters)
    assert (layout.dim, len(layout.slots)) == (n_parameters, 60)
    with pytest.raises(ValueError, match="n_parameters >= 60, got 59"):
        overhead.layout_of(59)


def test_a_round_adds_a_thousandth_to_every_weight():
    rounds = overhead.Rounds(600)
    start = {name: value.clone() for name, value in rounds.weights.items()}

    def server(grid):
        roster = roll_call(grid, 3)
        rounds.run(grid, roster)
        rounds.run(grid, {client: roster[client] for client in (0, 2)})

    InProcessEngine().run(server, overhead.trivial_app(), 3)
    assert len(rounds.facts) == 2
    assert rounds.failed == []
    for name, value in rounds.weights.items():
        torch.testing.assert_close(value, start[name] + 2 * overhead.STEP)


def test_a_round_notices_a_wrong_mean(monkeypatch):
    rounds = overhead.Rounds(600)
    app = overhead.trivial_app()
    monkeypatch.setattr(overhead, "STEP", 0.002)

    def server(grid):
        roster = roll_call(grid, 2)
        monkeypatch.setattr(rounds, "first_value", rounds.first_value + 1)
        rounds.run(grid, roster)

    with pytest.raises(RuntimeError, match="mean needs to be"):
        InProcessEngine().run(server, app, 2)


def test_clients_work_as_long_as_they_are_told():
    rounds = overhead.Rounds(600, work={1: 0.15})
    InProcessEngine().run(lambda grid: rounds.run(grid, roll_call(grid, 2)), app(), 2)
    assert 0.15 <= rounds.facts[0]["cpu_seconds"] < 0.6


def app():
    return overhead.trivial_app()


def test_plain_loop_is_the_mean_of_the_clients():
    work = overhead.plain_loop(600, 4)
    cells = [c.cell_contents for c in work.__closure__ if isinstance(c.cell_contents, dict)]
    work()
    work()
    assert any(
        all(torch.allclose(v, torch.full_like(v, 2 * overhead.STEP)) for v in weights.values())
        for weights in cells
    )


@pytest.mark.parametrize("engine", ["in_process", "plain_loop", "memcpy"])
def test_a_case_gives_every_figure(engine):
    threads = torch.get_num_threads()
    try:
        result = overhead.measure(case(engine))
    finally:
        torch.set_num_threads(threads)
    assert result["matrix_bytes"] == 4 * 600 * 3
    assert result["peak_bytes"] > 0
    assert len(result["rounds"]) == 3
    assert json.dumps(result, allow_nan=False)
    total = result["exchange_seconds"] + result["server_seconds"]
    assert 0 < result["round_seconds"] < 10 * total + 1


def test_the_first_round_is_apart():
    facts = [
        {"exchange_seconds": e, "server_seconds": 1.0, "cpu_seconds": e} for e in (90, 1, 2, 6)
    ]
    found = overhead.summary(facts, 3 * 7200, 100, case("memcpy"))
    assert found["first_round_seconds"] == 91
    assert found["round_seconds"] == 3
    assert found["exchange_seconds"] == 2
    assert found["cpu_seconds"] == 3
    assert found["peak_per_matrix"] == 3


RESULTS = [
    {
        **case(engine),
        "round_seconds": seconds,
        "exchange_seconds": seconds,
        "server_seconds": 0.0,
        "cpu_seconds": seconds,
        "peak_bytes": 1000,
        "peak_per_matrix": 2.0,
        "startup_seconds": 0.0,
        "first_round_seconds": 1.0,
    }
    for engine, seconds in (("resident", 2.0), ("flower", 8.0), ("plain_loop", 0.5))
]


def test_ratios_side_by_side():
    (row,) = overhead.ratios(RESULTS)
    assert row["resident_per_flower_round_seconds"] == 0.25
    assert row["resident_per_plain_loop_round_seconds"] == 4
    assert overhead.table(RESULTS).rows[0][-2:] == ("0.25", "4")
    (row,) = overhead.ratios(RESULTS[:1])
    assert row["resident_per_flower_round_seconds"] is None
    assert overhead.table(RESULTS[:1]).rows[0][-2:] == ("-", "-")


def test_the_command_writes_table_and_json(monkeypatch, tmp_path, capsys):
    def run_case(path, asked, **_):
        if asked["engine"] == "flower":
            return {**asked, "error": "ended with code 1: died"}
        return {**RESULTS[0], **asked}

    monkeypatch.setattr(overhead, "run_case", run_case)
    monkeypatch.setattr(
        overhead, "too_large", lambda needed: "left out: too large" if needed > 3e9 else None
    )
    output = tmp_path / "out.json"
    overhead.main(["--sizes", "1", "43", "--clients", "10", "--output", str(output)])
    content = json.loads(output.read_text())
    assert len(content["results"]) == 10
    assert len(content["ratios"]) == 2
    assert content["seed"] == 0
    out = capsys.readouterr().out
    assert "| 1M x 10 | flower | ended with code 1: died |" in out
    assert "| 43M x 10 | flower | left out: too large |" in out
    assert out.count("\n") == 12


@pytest.mark.slow
def test_the_engines_run(tmp_path):
    output = tmp_path / "out.json"
    engines = ["resident", "flower"]
    overhead.main(["--quick", "--workers", "1", "--engines", *engines, "--output", str(output)])
    content = json.loads(output.read_text())
    assert [r["round_seconds"] > 0 for r in content["results"]] == [True, True]
    assert content["ratios"][0]["resident_per_flower_round_seconds"] > 0
