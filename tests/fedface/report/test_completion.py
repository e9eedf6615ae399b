from pathlib import Path

import pytest

from fedface.report.completion import complete, complete_if_needed, complete_run, is_completed
from fedface.report.run_folder import RunFolderError
from tests.fedface.report.recordings import record_comparison, record_run

PIECES = {"model.safetensors", "model.json", "model_card.md"}


def test_a_run_gets_all_its_pieces(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    assert not is_completed(path)
    assert {file.name for file in complete_run(path)} == PIECES
    assert is_completed(path)
    complete_if_needed(path)


@pytest.mark.parametrize("lost", sorted(PIECES))
def test_only_a_run_that_lost_a_piece_is_completed_again(tmp_path: Path, lost: str) -> None:
    path = record_run(tmp_path / "tiny").path
    complete_run(path)
    other = next(iter(PIECES - {lost}))
    (path / other).write_text("kept while nothing is missing")
    complete_if_needed(path)
    assert (path / other).read_bytes() == b"kept while nothing is missing"
    (path / lost).unlink()
    complete_if_needed(path)
    assert is_completed(path)
    assert (path / other).read_bytes() != b"kept while nothing is missing"


def test_a_run_of_its_own_has_its_own_report(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    assert {file.name for file in complete(path)} == {*PIECES, "report.html"}


def test_a_comparison_has_one_report_and_every_run_its_model(tmp_path: Path) -> None:
    path = record_comparison(tmp_path / "both").path
    written = complete(path)
    assert len(written) == len(set(written)) == 4 * 3 + 1
    assert list(path.rglob("report.html")) == [path / "report.html"]
    assert len(list(path.rglob("model_card.md"))) == 4


def test_what_was_recorded_is_not_touched(tmp_path: Path) -> None:
    path = record_comparison(tmp_path / "both", seeds=(0,)).path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    complete(path)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    (path / "result.json").unlink()
    with pytest.raises(RunFolderError, match="complete run"):
        complete(path)
