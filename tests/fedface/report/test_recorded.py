import json
import shutil
from pathlib import Path

import pytest

from fedface.report.recorded import (
    backdoor_points,
    false_accept_rates,
    operating_points,
    read_recording,
    read_run,
)
from fedface.report.run_folder import RunFolderError
from tests.fedface.report.recordings import record_comparison, record_run


def test_a_run_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "tiny")
    run = read_run(folder.path)
    assert run.config == folder.config
    assert list(run.rounds) == folder.events("round")
    assert list(run.evaluations) == folder.events("evaluation")
    assert run.result == folder.result()
    assert run.final == run.evaluations[-1]
    assert run.malicious == (1,)
    assert run.title == "tiny"
    assert false_accept_rates([run]) == [0.001, 0.01]
    assert operating_points(run.final)[0.01]["tar"] == 0.5


def test_without_a_record_the_malicious_are_those_that_answered(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", malicious=(0, 2), recorded_data=False).path)
    assert run.malicious == (0, 2)


def test_a_comparison_lists_the_reference_first_and_every_seed(tmp_path: Path) -> None:
    recording = read_recording(record_comparison(tmp_path / "both").path)
    assert list(recording.variants) == ["clean", "attacked"]
    assert recording.n_seeds == 2
    titles = [run.title for run in recording.runs]
    assert titles[-1] == "both attacked seed-1"


def test_a_model_that_could_not_be_measured_has_no_points(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", failed="embeddings need a length").path)
    assert run.final is None
    assert operating_points(run.evaluations[-1]) == backdoor_points(run.evaluations[-1]) == {}
    assert backdoor_points({**run.evaluations[0], "backdoor": None}) == {}
    without = {**run.evaluations[0]["backdoor"], "deployed": None}
    assert backdoor_points({**run.evaluations[0], "backdoor": without}, "deployed") == {}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "no config.yaml"),
        ("result.json", None, "complete run, found no result.json"),
        ("result.json", "{", "result.json: needed a JSON object"),
        ("environment.json", None, "environment.json: needed"),
        ("events.jsonl", None, "needed the 3 rounds that result.json counts, found 0"),
        ("events.jsonl", '{"event": "round", "round": 1}\n', "found 1"),
    ],
)
def test_missing_pieces_are_named(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    path = record_run(tmp_path / "tiny").path
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(RunFolderError, match=message) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_a_comparison_with_a_run_missing_says_which(tmp_path: Path) -> None:
    path = record_comparison(tmp_path / "both").path
    shutil.rmtree(path / "attacked" / "seed-1")
    with pytest.raises(RunFolderError, match=r"result.json in attacked/seed-1 \(1 of 4\)"):
        read_recording(path)


def test_the_folders_of_a_comparison_may_have_moved(tmp_path: Path) -> None:
    path = record_comparison(tmp_path / "both").path
    path.rename(tmp_path / "elsewhere")
    assert len(read_recording(tmp_path / "elsewhere").runs) == 4
    assert json.loads((tmp_path / "elsewhere/clean/seed-0/result.json").read_text())["seed"] == 0
