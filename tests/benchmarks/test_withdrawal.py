"""The benchmark of withdrawal: its figures, and one whole smoke run."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from fedface.data.faces import Faces
from fedface.report.run_folder import RunFolder
from tests.benchmarks.by_path import script

script("measuring")
withdrawal = script("withdrawal")


def record(verdict: str, before: float, after: float) -> dict[str, object]:
    return {
        "verdict": verdict,
        "before": {"p": before, "power": 0.9},
        "after": {"p": after, "power": 0.8},
    }


def test_the_summary_counts_small_p_values_and_tests_for_uniformity() -> None:
    evenly = np.linspace(0.02, 0.98, 25)
    found = withdrawal.summary([record("full retrain", 0.01, p) for p in evenly])
    assert found["n_people"] == 25
    assert (found["before_share_at_most_alpha"], found["before_median_p"]) == (1.0, 0.01)
    assert found["after_share_at_most_alpha"] == pytest.approx(1 / 25)
    assert found["before_uniform_p"] < 1e-9 < 0.9 < found["after_uniform_p"]
    assert found["after_power"] == pytest.approx(0.8)


def test_the_table_has_each_verdict_and_all_people() -> None:
    records = [record("full retrain", 0.01, 0.4), record("retrain from round", 0.02, 0.6)]
    rows = withdrawal.table_of(records).rows
    assert [row[:3] for row in rows] == [
        (verdict, n, when)
        for verdict, n in (("full retrain", "1"), ("retrain from round", "1"), ("all", "2"))
        for when in ("before", "after")
    ]
    assert len(withdrawal.table_of(records[:1]).rows) == 4, "no row of a verdict that nobody got"


def test_the_first_round_of_each_site_is_read_from_the_facts(tmp_path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, {})
    for server_round, sites in ((1, (0, 2)), (2, (2, 3)), (3, (0, 3))):
        clients = [{"client": site} for site in sites]
        folder.append({"event": "round", "round": server_round, "clients": clients})
    assert withdrawal.first_rounds(folder, 4) == [1, None, 1, 2]


def test_faces_are_written_as_folders_of_people(tmp_path) -> None:
    images = np.arange(3 * 16 * 16 * 3).reshape(3, 16, 16, 3).astype(np.uint8)
    faces = Faces(images, np.array([0, 1, 1]), ("anna", "bert"))
    written = withdrawal.write_faces(tmp_path / "faces", faces, ["bert"])
    (bert,) = written.iterdir()
    assert bert.name == "bert"
    read = [np.asarray(Image.open(path)) for path in sorted(bert.iterdir())]
    assert np.array_equal(np.stack(read), images[1:])


def test_a_training_that_fails_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="needs to end with code 0"):
        withdrawal.in_a_process_of_its_own(lambda: os._exit(3))


@pytest.mark.parametrize("arguments", [["--people", "0"], ["--seeds", "1", "1"]])
def test_impossible_settings_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        withdrawal.main(arguments)


@pytest.mark.slow
def test_one_command_prints_one_table_and_writes_it(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", "restored afterwards")
    arguments = ["--quick", "--seeds", "1", "--people", "2", "--runs", str(tmp_path)]
    withdrawal.main(arguments)
    found = json.loads((tmp_path / "withdrawal.json").read_text())
    assert found["benchmark"] == "withdrawal" and found["settings"]["quick"] is True
    people = found["people"]
    assert [p["verdict"] for p in people] == ["full retrain"] * 2 + ["retrain from round"] * 2
    assert [p["kept_rounds"] for p in people[:2]] == [0, 0]
    assert people[2]["kept_rounds"] == people[3]["kept_rounds"] >= 1
    assert len({p["person"] for p in people}) == 4
    assert all(1 / 21 <= p[when]["p"] <= 1 for p in people for when in ("before", "after"))
    assert all(p["before"]["statistic"] != p["after"]["statistic"] for p in people)
    monkeypatch.setattr(withdrawal, "trained", lambda config: pytest.fail("trained again"))
    withdrawal.main(arguments)
    assert json.loads((tmp_path / "withdrawal.json").read_text())["people"] == people
    table = (tmp_path / "withdrawal.md").read_text()
    assert table.strip() in capsys.readouterr().out
