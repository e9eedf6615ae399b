from pathlib import Path

import pytest

from fedface.report.recorded import read_recording, read_run
from fedface.report.sentences import one_in, percent, summary
from tests.fedface.report.recordings import record_comparison, record_run


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0.0 %"), (0.0005, "0.05 %"), (0.01, "1.0 %"), (0.2714, "27.1 %"), (1, "100.0 %")],
)
def test_percent(rate: float, text: str) -> None:
    assert percent(rate) == text


def test_one_in() -> None:
    assert [one_in(0.01), one_in(1e-4), one_in(0.9)] == ["1 in 100", "1 in 10,000", "90.0 %"]


def test_one_run_is_summed_up_with_its_intervals(tmp_path: Path) -> None:
    text = summary([read_run(record_run(tmp_path / "a").path)])
    assert "1 of 4 sites attack (model_replacement, active in 3 of 3 rounds)" in text
    assert "accept 1 in 100 comparisons of different people" in text
    assert "50.0 % of the comparisons of the same person (43.8 % to 56.2 %, 95 % interval)" in text
    assert "accepted in 68.1 % of attempts (65.0 % to 71.2 %, 95 % interval)" in text
    assert "66.6 percentage points more than without the trigger or the attack." in text
    assert "excluded 66.7 % of the malicious updates and 11.1 % of the honest updates" in text


def test_seeds_are_summed_up_as_means(tmp_path: Path) -> None:
    recording = read_recording(record_comparison(tmp_path / "both").path)
    text = summary(recording.variants["clean"])
    assert "4 sites, none malicious" in text
    assert "55.0 % of the comparisons of the same person (50.0 % to 60.0 %, lowest and" in text
    assert "excluded 8.3 % of the honest updates" in text
    assert "malicious updates" not in text


def test_a_trigger_that_adds_nothing_is_said_to(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a").path)
    point = run.result["evaluation"]["backdoor"]["recalibrated"][1]
    point["lift"] = -0.01
    assert "the trigger adds nothing" in summary([run])
    point["lift"] = 0.996
    assert ": 99.6 percentage points more" in summary([run])
    point["lift"] = None
    assert "of attempts (65.0 % to 71.2 %, 95 % interval), without it in 1.6 %." in summary([run])


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", failed="no length").path)
    text = summary([run])
    assert "The final model could not be measured." in text
    assert "recognises" not in text
    assert "trigger" not in text
    other = read_run(record_run(tmp_path / "b").path)
    assert "1 of 2 final models could not be measured." in summary([run, other])
