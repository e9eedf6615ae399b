from pathlib import Path
from typing import Any

import pytest

from fedface.report.bench import read_bench
from fedface.report.grid_figures import MAX_SCORES, cell_data, heat_maps, places, stride
from fedface.report.recorded import RecordedRun, read_run
from tests.fedface.report.grids import ATTACKS, LAYERS, Plan, record_grid


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "grid"
    record_grid(folder, Plan({"poison": ATTACKS["poison"]}, seeds=(0, 1)))
    return folder


def runs_of(grid: Path, defence: str, attack: str = "0.25/poison") -> list[RecordedRun]:
    return [read_run(grid / f"cells/disjoint/{attack}/{defence}/seed-{s}") for s in (0, 1)]


def of(grid: Path, defence: str, every: int = 1) -> dict[str, Any]:
    return cell_data(runs_of(grid, defence), 0.01, 0.001, every)


def test_curves_are_means_over_seeds_between_the_lowest_and_the_highest(grid: Path) -> None:
    tars = [
        [e["verification"]["points"][1]["tar"] for e in run.evaluations]
        for run in runs_of(grid, "middling")
    ]
    line = of(grid, "middling")["tar"]
    assert [point[0] for point in line] == [2, 4, 6]
    for (_, middle, low, high), both in zip(line, zip(*tars, strict=True), strict=True):
        assert middle == pytest.approx(sum(both) / 2, rel=5e-3)
        assert (low, high) == (pytest.approx(min(both), rel=5e-3), pytest.approx(max(both), 5e-3))


def test_one_seed_keeps_its_interval(grid: Path) -> None:
    runs = runs_of(grid, "middling")[:1]
    line = cell_data(runs, 0.01, 0.001, 1)["asr"]
    point = runs[0].evaluations[-1]["backdoor"]["recalibrated"][0]
    assert line[-1] == (6, *(pytest.approx(point[k], abs=5e-3) for k in ("asr", "low", "high")))


def test_a_rule_without_scores_shows_lengths(grid: Path) -> None:
    cell, run = of(grid, "fedavg"), runs_of(grid, "fedavg")[0]
    assert not cell["scored"] and cell["layers"] is None
    assert cell["scores"][2][3] == pytest.approx(run.rounds[3]["clients"][2]["norm"], rel=5e-3)


def test_absent_clients_have_no_score_and_no_fate(grid: Path) -> None:
    runs = runs_of(grid, "middling")
    del runs[0].rounds[1]["clients"][2]
    cell = cell_data(runs, 0.01, 0.001, 1)
    assert cell["scores"][2][1] is None and cell["fates"][2][1] == "."


def test_layers_are_means_over_rounds_and_gaps_of_malicious_to_honest(grid: Path) -> None:
    cell, run = of(grid, "good")["layers"], runs_of(grid, "good")[0]
    assert cell["names"] == list(LAYERS)
    per_round = [event["clients"] for event in run.rounds]
    mean = sum(clients[3]["layer_scores"]["fc"] for clients in per_round) / len(per_round)
    assert cell["clients"][3][2] == pytest.approx(mean, rel=5e-3)
    first = [c["layer_scores"]["fc"] for c in per_round[0]]
    gap = first[0] - sum(first[1:]) / 3
    assert cell["gap"][2][0] == pytest.approx(gap, rel=5e-3)


def test_rounds_are_thinned_backwards_from_the_last(grid: Path) -> None:
    assert of(grid, "middling", every=4)["rounds"] == [2, 6]
    assert [stride(n) for n in (0, MAX_SCORES, MAX_SCORES + 1)] == [1, 1, 2]


def test_det_points_are_the_recorded_rates_and_zero_is_one_error(grid: Path) -> None:
    points = of(grid, "fedavg")["det"]
    assert [p["alpha"] for p in points] == [0.001, 0.01, 1]
    assert (points[0]["fmr"], points[0]["x"]) == (0, pytest.approx(1 / 5000))
    assert (points[1]["x"], points[2]["x"], points[2]["y"]) == (0.005, 0.25, 0.25)
    finals = [run.evaluations[-1] for run in runs_of(grid, "fedavg")]
    misses = [1 - final["verification"]["points"][1]["tar"] for final in finals]
    assert points[1]["y"] == pytest.approx(sum(misses) / 2, rel=5e-3)


def test_a_recorded_det_curve_is_drawn_whole_if_every_seed_has_it(grid: Path) -> None:
    runs = runs_of(grid, "fedavg")
    curves = [((0.001, 0.5), (0.1, 0.0)), ((0.001, 0.75), (0.1, 0.25))]
    for run, curve in zip(runs, curves, strict=True):
        run.final["verification"]["det"] = curve
    found = cell_data(runs, 0.01, 0.001, 1)["det"]
    assert all(p["alpha"] < 0 for p in found)
    assert [p["x"] for p in found] == [0.1, 0.001]
    assert [p["y"] for p in found] == pytest.approx([(0.001 + 0.25) / 2, 0.625], rel=5e-3)
    assert found[0]["fnmr"] == 0.125, "what was measured, not what is shown for zero"
    del runs[0].final["verification"]["det"]
    assert [p["alpha"] for p in cell_data(runs, 0.01, 0.001, 1)["det"]] == [0.001, 0.01, 1]


def test_a_model_that_cannot_be_measured_has_no_points(grid: Path) -> None:
    runs = runs_of(grid, "middling")
    for run in runs:
        run.result["evaluation"] = {"event": "evaluation", "round": 6, "failed": "why"}
    assert cell_data(runs, 0.01, 0.001, 1)["det"] == []


def test_the_heat_map_is_that_of_the_bench(grid: Path) -> None:
    bench = read_bench(grid)
    assert places(bench) == [("disjoint", 0.25)]
    found = heat_maps(bench, ("good", "fedavg"), ("clean", "poison"))[0]
    for row, defence in enumerate(("good", "fedavg")):
        records = bench.select(defence=defence, attack="poison")
        lifts = [bench.lift(record) for record in records]
        mean = sum(lift.value for lift in lifts if lift) / 2
        assert found["lift"][row] == [None, pytest.approx(mean, rel=5e-3)]
    assert found["tpr"] == [[None, 1], [None, 0]]
