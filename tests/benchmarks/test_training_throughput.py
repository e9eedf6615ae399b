import json

import pytest
import torch

from simulations.engine import InProcessEngine, workers
from tests.benchmarks.by_path import script

for name in ("measuring", "engine_overhead"):
    script(name)
throughput = script("training_throughput")
CASE = {
    "n_clients": 4,
    "n_sampled": 2,
    "n_rounds": 2,
    "seed": 0,
    "settings": "stock",
    "n_processes": 1,
    "n_threads": 1,
}


@pytest.mark.parametrize("settings", throughput.SETTINGS)
def test_the_network_has_the_size_that_is_named(settings):
    model = throughput.network(0, settings)
    n_parameters = sum(p.numel() for p in model.parameters())
    assert n_parameters == 114_225
    assert f"{n_parameters:,}" in throughput.__doc__
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert all(map(torch.equal, model.parameters(), throughput.network(0, "stock").parameters()))
    weight = model[3].weight
    assert weight.is_contiguous() == (settings != "sites")
    assert weight.is_contiguous(memory_format=torch.channels_last) == (settings == "sites")


def test_clients_have_their_own_images():
    images, labels = throughput.images_of(1, 0, "stock")
    assert images.shape == (128, 3, 32, 32)
    assert labels.shape == (128,)
    assert not torch.equal(images, throughput.images_of(2, 0, "stock")[0])
    assert torch.equal(images, throughput.images_of(1, 0, "sites")[0])


def test_cohorts():
    cohorts = [throughput.cohort_of(r, {**CASE, "n_clients": 100, "n_sampled": 50}) for r in (0, 1)]
    assert all(len(set(c)) == 50 and c == sorted(c) for c in cohorts)
    assert cohorts[0] != cohorts[1]


@pytest.mark.parametrize("settings", ["stock", "sites"])
def test_messages_train_what_the_plain_loop_trains(monkeypatch, settings):
    """Same network, images, cohorts and steps: only then do the seconds compare."""
    case = {**CASE, "settings": settings}
    monkeypatch.setattr(workers, "ENVIRONMENT", dict(workers.ENVIRONMENT))
    trained = []
    monkeypatch.setattr(throughput, "_check", trained.append)
    for _ in throughput.plain(case):
        pass
    overhead = script("engine_overhead")
    monkeypatch.setattr(overhead, "engine_named", lambda *_: InProcessEngine())
    found = throughput.with_engine({**case, "simulator": "in_process"})
    plain, messages = trained
    start = dict(throughput.network(0, settings).named_parameters())
    for name, value in plain.items():
        assert not torch.allclose(value, start[name].detach(), atol=1e-4), name
        torch.testing.assert_close(value, messages[name], atol=1e-5, rtol=1e-4)
    assert len(found["all_seconds"]) == 2
    assert found["versions"]["torch"] == torch.__version__


def result(simulator, processes, threads, seconds, settings="sites"):
    return {
        "simulator": simulator,
        "settings": settings,
        "n_processes": processes,
        "n_threads": threads,
        "round_seconds": seconds,
        "cpu_seconds": 1.0,
        "first_round_seconds": 2.0,
    }


RESULTS = [
    result("resident", 2, 1, 0.5),
    result("pfl", 1, 1, 0.1),
    result("pfl", 1, 2, 0.8),
    result("pfl", 2, 1, 0.6),
    result("pfl", 2, 1, 0.7, "stock"),
    {"simulator": "flower", "settings": "stock", "n_processes": 2, "n_threads": 1, "error": "died"},
]


def test_the_best_way_uses_all_cores():
    best = throughput.best(RESULTS, 2)
    assert best == {
        ("resident", "sites"): RESULTS[0],
        ("pfl", "sites"): RESULTS[3],
        ("pfl", "stock"): RESULTS[4],
    }
    assert throughput.per_core(RESULTS[3]) == pytest.approx(1 / 1.2)
    rows = throughput.table(RESULTS, 2).rows
    assert [row[-1] for row in rows] == ["best", "", "", "best", "best", "-"]
    assert rows[3][-2] == "1.2"


def test_every_way_to_use_the_cores_is_measured():
    options = type("Options", (), {"quick": False, "rounds": 3, "seed": 0, "cores": 2})
    options.simulators, options.settings = ["resident", "pfl", "plain"], ["stock", "sites"]
    keys = ("simulator", "settings", "n_processes", "n_threads")
    assert [tuple(c[key] for key in keys) for c in throughput.cases(options)] == [
        ("resident", "sites", 2, 1),
        ("pfl", "stock", 1, 2),
        ("pfl", "stock", 2, 1),
        ("pfl", "sites", 1, 2),
        ("pfl", "sites", 2, 1),
        ("plain", "stock", 1, 1),
        ("plain", "stock", 1, 2),
        ("plain", "sites", 1, 1),
        ("plain", "sites", 1, 2),
    ]


def test_the_command_writes_table_and_json(monkeypatch, tmp_path, capsys):
    asked = []

    def run_case(path, case, python, environment):
        keeps = "MALLOC_TRIM_THRESHOLD_" in environment
        asked.append((case["simulator"], case["settings"], python, keeps))
        assert environment["OMP_NUM_THREADS"] == str(case["n_threads"])
        return {**RESULTS[0], **case}

    monkeypatch.setattr(throughput, "run_case", run_case)
    monkeypatch.setattr(throughput, "environment_of", lambda *_: "/pfl/python")
    output = tmp_path / "out.json"
    throughput.main(["--quick", "--cores", "2", "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["best"]["pfl kept"]["rounds_per_second_per_core"] == 1
    assert content["settings"]["n_parameters"] == 114_225
    assert ("pfl", "stock", "/pfl/python", False) in asked
    assert ("pfl", "kept", "/pfl/python", True) in asked
    assert capsys.readouterr().out.count("\n") == 2 + len(asked)
