import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.report import run_folder
from fedface.report.run_folder import Checkpoint, RunFolder, RunFolderError, write_atomically

CONFIG = {"name": "run", "rate": 1e-5, "list": [1, 2.5, "three", None], "inner": {"on": True}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG, {"python": "3"})


def checkpoint(server_round: int, n: int = 3) -> Checkpoint:
    model = {"w": torch.full((n,), float(server_round)), "count": torch.tensor(server_round)}
    return Checkpoint(server_round, model, {"memory": torch.full((2,), float(server_round))})


def files(folder: RunFolder) -> set[str]:
    return {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}


def test_a_new_folder_says_what_was_asked_and_where(folder: RunFolder) -> None:
    assert folder.exists()
    assert folder.config == CONFIG
    assert folder.environment == {"python": "3"}
    assert folder.events() == [] and folder.result() is None
    assert folder.latest() is None and folder.checkpoint_rounds() == []
    assert files(folder) == {"config.yaml", "environment.json", "events.jsonl"}


def test_a_run_is_not_overwritten(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="needed a free run folder, found a run") as caught:
        RunFolder.create(folder.path, {"name": "other"}, {})
    assert str(caught.value).startswith(str(folder.path))
    assert folder.config == CONFIG


def test_a_folder_without_run_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run" / "notes").mkdir(parents=True)
    assert RunFolder.create(tmp_path / "run", CONFIG, {}).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="needed a writable folder, found: ") as caught:
        RunFolder.create(tmp_path / "file" / "run", CONFIG, {})
    assert str(tmp_path / "file" / "run") in str(caught.value)


def test_a_folder_does_not_count_as_a_run_until_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any write of ``create``, a second ``create`` starts anew."""
    written = write_atomically
    for n_writes in range(2):
        left = [n_writes]

        def stopping(path: Path, text: str, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            written(path, text)

        path = tmp_path / str(n_writes)
        monkeypatch.setattr(run_folder, "write_atomically", stopping)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(path, CONFIG, {})
        monkeypatch.setattr(run_folder, "write_atomically", written)
        assert RunFolder.create(path, CONFIG, {"python": "3"}).environment == {"python": "3"}


def test_a_missing_run_has_no_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "nothing")
    assert not folder.exists() and folder.events() == [] and folder.checkpoint_rounds() == []
    with pytest.raises(RunFolderError, match=r"needed a run folder, found no config\.yaml"):
        _ = folder.config


def test_facts_come_back_in_order_by_kind(folder: RunFolder) -> None:
    facts = [
        {"event": "round", "round": 1, "clients": [{"why": "ä\n\u2028\x1e", "x": 0.1}]},
        {"event": "evaluation", "round": 1, "none": None},
        {"event": "round", "round": 2},
    ]
    for fact in facts:
        folder.append(fact)
    assert folder.events() == facts
    assert folder.events("round") == [facts[0], facts[2]]
    assert folder.events("nothing") == []
    assert len((folder.path / "events.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(bad: float, folder: RunFolder) -> None:
    folder.append({"round": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append({"round": 2, "deep": {"list": [0.0, bad]}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_result({"tar": bad})
    assert folder.events() == [{"round": 1}] and folder.result() is None


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_line_that_a_kill_cut_is_left_out(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every prefix of the file gives the facts whose line is whole."""
    folder = RunFolder.create(tmp_path_factory.mktemp("cut") / "run", {}, {})
    facts = [{"event": "round", "round": n, "list": [n, {"a": "}"}]} for n in range(1, 4)]
    for fact in facts:
        folder.append(fact)
    path = folder.path / "events.jsonl"
    text = path.read_text()
    path.write_text(text[:cut])
    ends = [len("".join(json.dumps(f) + "\n" for f in facts[:n])) for n in range(4)]
    n_whole = max(n for n in range(4) if n == 0 or cut >= ends[n] - 1)
    assert folder.events() == facts[:n_whole]
    folder.forget_after(3)
    folder.append({"event": "more"})
    assert folder.events() == [*facts[:n_whole], {"event": "more"}]


def test_damage_before_the_last_line_is_named(folder: RunFolder) -> None:
    (folder.path / "events.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(RunFolderError, match=r"events\.jsonl:2: needed one JSON object"):
        folder.events()


def test_checkpoints_come_back_exactly(folder: RunFolder) -> None:
    model = {
        "float": torch.randn(3, 4),
        "strided": torch.randn(4, 3).t(),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "flags": torch.tensor([True, False]),
    }
    folder.save(Checkpoint(12, model, {}))
    latest = folder.latest()
    assert latest is not None and latest.server_round == 12 and latest.state == {}
    assert latest.model.keys() == model.keys()
    for name, value in model.items():
        assert latest.model[name].dtype == value.dtype
        assert torch.equal(latest.model[name], value), name


def test_every_model_is_kept_and_the_state_of_two_rounds(folder: RunFolder) -> None:
    for server_round in range(1, 5):
        folder.save(checkpoint(server_round))
        latest = folder.latest()
        assert latest is not None and latest.server_round == server_round
        assert torch.equal(latest.state["memory"], torch.full((2,), float(server_round)))
    assert folder.checkpoint_rounds() == [1, 2, 3, 4]
    states = {name for name in files(folder) if "state-" in name}
    assert states == {f"checkpoints/state-round-00000{n}.safetensors" for n in (3, 4)}


def test_the_latest_round_is_one_with_model_and_state(folder: RunFolder) -> None:
    for server_round in (1, 2):
        folder.save(checkpoint(server_round))
    (folder.path / "checkpoints" / "state-round-000002.safetensors").unlink()
    latest = folder.latest()
    assert latest is not None and latest.server_round == 1


@pytest.mark.parametrize("n_writes", [0, 1])
def test_a_kill_while_saving_leaves_the_round_before(
    n_writes: int, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(checkpoint(1))
    left, replace = [n_writes], os.replace

    def stopping(*args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(*args)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        folder.save(checkpoint(2))
    monkeypatch.undo()
    latest = folder.latest()
    assert latest is not None and latest.server_round == 1
    assert torch.equal(latest.model["w"], torch.ones(3))
    folder.forget_after(1)
    folder.save(checkpoint(2))
    latest = folder.latest()
    assert latest is not None and latest.server_round == 2


def test_forgetting_drops_facts_and_models_of_later_rounds(folder: RunFolder) -> None:
    folder.append({"event": "start"})
    for server_round in (1, 2, 3):
        folder.append({"event": "round", "round": server_round})
        folder.append({"event": "evaluation", "round": server_round})
        folder.save(checkpoint(server_round))
    folder.forget_after(2)
    assert [fact.get("round") for fact in folder.events()] == [None, 1, 1, 2, 2]
    assert folder.checkpoint_rounds() == [1, 2]
    latest = folder.latest()
    assert latest is not None and latest.server_round == 2
    assert not any("000003" in name for name in files(folder))
    folder.forget_after(0)
    assert folder.events() == [{"event": "start"}] and folder.latest() is None


def test_other_files_are_no_checkpoints(folder: RunFolder) -> None:
    for name in ("round-1.safetensors", "round-000001.safetensors.bak", "state-round-000001.x"):
        (folder.path / "checkpoints" / name).touch()
    assert folder.checkpoint_rounds() == [] and folder.latest() is None


def test_results_mark_the_run_as_complete(folder: RunFolder) -> None:
    folder.write_result({"evaluation": None, "rates": (0.25, 1e-7)})
    assert folder.result() == {"evaluation": None, "rates": [0.25, 1e-7]}


def test_a_stopped_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def stopping(*args: Any) -> None:
        raise KeyboardInterrupt

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, stopping)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "new")
        monkeypatch.undo()
        assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
