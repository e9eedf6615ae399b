import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedface.report.files import (
    RunFolderError,
    append_line,
    read_json,
    read_tensors,
    remove_partial,
    write_atomically,
    write_tensors,
)
from fedface.report.run_folder import Checkpoint, RunFolder

TENSORS = {
    "w": torch.arange(12.0).reshape(3, 4),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 2),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def saved(path: Path, **facts: str) -> bytes:
    write_tensors(path, TENSORS, **(facts or {"round": "3"}))
    return path.read_bytes()


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


# ---- what is written


def test_tensors_and_facts_come_back(path: Path) -> None:
    checksum = write_tensors(path, TENSORS, round="3", state="abc")
    tensors, header = read_tensors(path, round="3")
    assert_same(tensors)
    assert header == {"round": "3", "state": "abc", "sha256": checksum}
    assert_same(load_file(path))  # anybody's safetensors reads it, too


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Also from tensors in another order, and with several facts."""
    facts = {str(i): "x" for i in range(9)}
    write_tensors(tmp_path / "a", TENSORS, **facts)
    write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), **dict(reversed(facts.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_checksum_is_read_as_it_is(path: Path) -> None:
    """Those were written before there were checksums."""
    save_file(TENSORS, path, metadata={"round": "3"})
    assert_same(read_tensors(path, round="3")[0])
    with pytest.raises(RunFolderError, match="needed a checkpoint of round 4, found one of 3"):
        read_tensors(path, round="4")


# ---- what was damaged


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused_by_name(
    position: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "model.safetensors"
    data = bytearray(saved(path))
    data[position % len(data)] ^= flip
    path.write_bytes(data)
    try:
        found, header = read_tensors(path, round="3")
    except RunFolderError as refused:
        why = str(refused)
    else:  # a blank of the header's padding may become another blank
        why = ""
        assert_same(found)
        assert header["round"] == "3" and "sha256" in header
    assert not why or why.startswith(f"{path}: needed ")


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 10**6))
def test_any_truncated_file_is_refused_by_name(
    length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    data = saved(path)
    path.write_bytes(data[: length % len(data)])
    with pytest.raises(RunFolderError, match=f"^{path}: needed a whole checkpoint, found: "):
        read_tensors(path)


def rewritten(
    path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]
) -> None:
    """The file with other content under the old checksum, as an editor would leave it."""
    tensors, header = load_file(path), read_tensors(path)[1]
    change(tensors, header)
    save_file(tensors, path, metadata={"fedface": json.dumps(header)})


TAMPERING: dict[str, Callable[[Any, Any], None]] = {
    "a value": lambda tensors, header: tensors["w"].__setitem__((0, 0), 1e-3),
    "a name": lambda tensors, header: tensors.update(v=tensors.pop("w")),
    "a shape": lambda tensors, header: tensors.update(w=tensors["w"].reshape(4, 3)),
    "a type": lambda tensors, header: tensors.update(count=tensors["count"].to(torch.int32)),
    "one more": lambda tensors, header: tensors.update(more=torch.zeros(1)),
    "one less": lambda tensors, header: tensors.pop("empty"),
    "the round": lambda tensors, header: header.update(round="4"),
}


@pytest.mark.parametrize("change", TAMPERING.values(), ids=TAMPERING.keys())
def test_changed_content_is_refused_by_name(change: Any, path: Path) -> None:
    saved(path)
    rewritten(path, change)
    with pytest.raises(RunFolderError, match=f"^{path}: needed the checkpoint as it was written"):
        read_tensors(path)


@pytest.mark.parametrize("header", ["no json", "[1]", '{"round": 3}'])
def test_a_strange_header_is_refused_by_name(header: str, path: Path) -> None:
    save_file(TENSORS, path, metadata={"fedface": header})
    with pytest.raises(RunFolderError, match=f"^{path}: needed a whole checkpoint"):
        read_tensors(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0", '{"a": 1}{'])
def test_damaged_json_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RunFolderError, match=f"^{path}: needed a JSON object"):
        read_json(path)


# ---- full disks: the n-th call that brings something to the disk fails


class Full(OSError):
    """What the kernel says."""


def full(*args: Any) -> None:
    raise Full(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: write_atomically(path, "new"),
    "tensors": lambda path: write_tensors(path, TENSORS, round="4"),
    "line": lambda path: append_line(path, "new"),
}


@pytest.mark.parametrize("step", ["fsync", "write"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_and_leaves_what_was_there(
    writer: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "open", lambda self, *args, **options: HalfFull(self, *args))
    with pytest.raises(OSError, match=r"No space left on device: '") as caught:
        WRITERS[writer](path)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]


class HalfFull(io.FileIO):
    """A file that takes two bytes of what it is given; then the disk is full."""

    def __init__(self, path: Path, mode: str, **options: object) -> None:
        super().__init__(path, mode)
        self.n_writes = 0

    def write(self, data: Any) -> int:  # type: ignore[override]
        self.n_writes += 1
        if self.n_writes > 1:
            full()
        n = super().write(bytes(data)[:2])
        return n if self.mode.startswith("ab") else full() or n


def test_a_line_that_is_taken_in_pieces_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            return super().write(bytes(data)[:3])

    path = tmp_path / "file"
    monkeypatch.setattr(Path, "open", lambda self, mode, **options: Slow(self, mode))
    append_line(path, "some text of some length")
    append_line(path, "more")
    monkeypatch.undo()
    assert path.read_text() == "some text of some length\nmore\n"


def checkpoint(server_round: int) -> Checkpoint:
    model = {"w": torch.full((3,), float(server_round))}
    return Checkpoint(server_round, model, {"memory": torch.full((2,), float(server_round))})


@pytest.mark.parametrize("n", range(4))
def test_a_disk_that_fills_up_while_saving_leaves_the_round_before(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files, each brought to the disk with its folder."""
    folder = RunFolder.create(tmp_path / "run", {}, {})
    folder.save(checkpoint(1))
    left, fsync = [n], os.fsync

    def filling(descriptor: int) -> None:
        if not left[0]:
            full()
        left[0] -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(OSError, match=r"No space left on device: '.*round-000002.safetensors'"):
        folder.save(checkpoint(2))
    monkeypatch.undo()
    latest = folder.latest()
    assert latest is not None
    # The renaming itself may be there although its folder could not be brought to the disk.
    assert latest.server_round == (2 if n == 3 else 1)
    assert torch.equal(latest.model["w"], torch.full((3,), float(latest.server_round)))
    assert not list(folder.path.rglob("*.partial-*"))


# ---- folders that cannot be written


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Path]:
    """A read-only folder, and a process that must respect it; root writes everywhere."""
    folder = tmp_path / "run"
    RunFolder.create(folder, {"name": "run"}, {}).save(checkpoint(1))
    above = [p for p in folder.parents if p.stat().st_uid == os.geteuid() and p != Path("/")]
    modes = {p: p.stat().st_mode for p in above}
    for part in (folder, folder / "checkpoints"):
        part.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        for part in above:
            part.chmod(modes[part] | 0o011)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for part, mode in modes.items():
            part.chmod(mode)
        for part in (folder, folder / "checkpoints"):
            part.chmod(0o755)


def test_a_read_only_folder_stops_everything_by_name(as_nobody: Path) -> None:
    folder = RunFolder(as_nobody)
    with pytest.raises(RunFolderError, match=f"^{as_nobody}: needed a writable folder, found"):
        folder.alone().__enter__()
    with pytest.raises(PermissionError, match=f"'{as_nobody}/events.jsonl'"):
        folder.append({"event": "round", "round": 2})
    with pytest.raises(PermissionError, match=f"'{as_nobody}/checkpoints/state-round-000002"):
        folder.save(checkpoint(2))
    with pytest.raises(PermissionError, match=f"'{as_nobody}/result.json'"):
        folder.write_result({})
    with pytest.raises(RunFolderError, match="needed a writable folder, found"):
        RunFolder.create(as_nobody / "inner", {}, {})
    latest = folder.latest()
    assert latest is not None and latest.server_round == 1, "reading it goes on working"


# ---- checkpoints of a run folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", {}, {})
    for server_round in (1, 2):
        folder.save(checkpoint(server_round))
    return folder


def files(folder: RunFolder, server_round: int) -> tuple[Path, Path]:
    checkpoints = folder.path / "checkpoints"
    name = f"round-{server_round:06d}.safetensors"
    return checkpoints / name, checkpoints / f"state-{name}"


@pytest.mark.parametrize("which", [0, 1], ids=["model", "state"])
def test_a_damaged_last_checkpoint_is_refused_and_not_passed_over(
    which: int, folder: RunFolder
) -> None:
    path = files(folder, 2)[which]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=f"^{path}: needed a whole checkpoint"):
        folder.latest()
    files(folder, 2)[0].unlink()  # what the operator may decide
    latest = folder.latest()
    assert latest is not None and latest.server_round == 1


@pytest.mark.parametrize("which", [0, 1], ids=["model", "state"])
def test_the_checkpoint_of_another_round_is_refused(which: int, folder: RunFolder) -> None:
    early, late = (files(folder, r)[which] for r in (1, 2))
    late.write_bytes(early.read_bytes())
    with pytest.raises(RunFolderError, match=f"^{late}: needed a checkpoint of round 2, found one"):
        folder.latest()


def test_model_and_state_of_two_runs_are_not_mixed(folder: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.create(tmp_path / "other", {}, {})
    other.save(Checkpoint(2, checkpoint(2).model, {"memory": torch.ones(2)}))
    files(folder, 2)[1].write_bytes(files(other, 2)[1].read_bytes())
    with pytest.raises(RunFolderError, match="needed the state that was saved with the model"):
        folder.latest()


def test_a_single_model_is_checked_too(folder: RunFolder) -> None:
    assert torch.equal(folder.model(1)["w"], torch.ones(3))
    path = files(folder, 1)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=f"^{path}: needed"):
        folder.model(1)
    with pytest.raises(RunFolderError, match="round-000009"):
        folder.model(9)


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "\0"])
def test_damaged_settings_are_refused_by_name(content: str, folder: RunFolder) -> None:
    path = folder.path / "config.yaml"
    path.write_text(content)
    with pytest.raises(RunFolderError, match=f"^{path}: needed the run's settings, found"):
        _ = folder.config


# ---- who works in a folder


def test_two_processes_do_not_work_in_one_folder(folder: RunFolder) -> None:
    with folder.alone():
        with pytest.raises(RunFolderError, match="needed a run folder that nobody works in"):
            RunFolder(folder.path).alone().__enter__()
        assert [part.path for part in RunFolder(folder.path.parent).parts()] == [folder.path]
    with RunFolder(folder.path).alone():
        pass


def test_a_killed_process_keeps_nobody_out(folder: RunFolder) -> None:
    import signal

    child = os.fork()
    if not child:
        with folder.alone():
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with folder.alone():
        pass


def test_what_killed_writers_left_is_removed(folder: RunFolder) -> None:
    left = [folder.path / ".result.json.partial-1", files(folder, 3)[0].with_name(".x.partial-2")]
    for path in left:
        path.touch()
    folder.forget_after(2)
    assert not any(path.exists() for path in left) and folder.checkpoint_rounds() == [1, 2]
    remove_partial(folder.path / "nowhere")
