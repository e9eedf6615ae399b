import json
import multiprocessing
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from fedface.data import cache
from fedface.data.cache import Entry, cache_folder, cached, cached_faces, file_digest, spill
from fedface.data.faces import Faces, Skip

KEY = {"loader": "test", "size": 4}
FORK = multiprocessing.get_context("fork")
"""Processes of their own that need not import torch again."""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_faces() -> Faces:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    identities = np.array([0, 0, 1, 1, 2, 2])
    return Faces(images, identities, ("ann", "bob", "\udcff"), (Skip("x.txt", "no image"),))


def never() -> Faces:
    raise AssertionError("built again")


def assert_equal(found: Faces, expected: Faces) -> None:
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.identities, expected.identities)
    assert found.names == expected.names
    assert found.skipped == expected.skipped


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere: become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def public_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that nobody can reach; pytest's own are root's."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o777)
        monkeypatch.setenv("FEDFACE_CACHE", f"{outer}/cache")
        yield Path(outer) / "cache"
        subprocess.run(["chmod", "-R", "u+w", outer], check=True)


def test_builds_once_then_maps_the_same_faces() -> None:
    first = cached_faces(KEY, some_faces)
    second = cached_faces(KEY, never)
    for faces in (first, second):
        assert_equal(faces, some_faces())
        assert isinstance(faces.images, np.memmap)
        assert not faces.images.flags.writeable


def test_keys_that_differ_anywhere_are_different_entries(folder: Path) -> None:
    keys = [{}, KEY, {**KEY, "size": 5}, {**KEY, "size": "4"}, {**KEY, "more": [1, {"a": None}]}]
    for key in keys:
        cached_faces(key, some_faces)
    assert len(entries(folder)) == len(keys)
    cached_faces(dict(reversed(KEY.items())), never)


def test_the_format_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_faces(KEY, some_faces)
    monkeypatch.setattr(cache, "FORMAT_VERSION", cache.FORMAT_VERSION + 1)
    with pytest.raises(AssertionError, match="built again"):
        cached_faces(KEY, never)


def test_keys_may_hold_paths_but_nothing_that_json_cannot_carry() -> None:
    cached_faces({"root": Path("/a")}, some_faces)
    cached_faces({"root": "/a"}, never)
    with pytest.raises(TypeError, match="JSON values or paths, got set"):
        cached_faces({"a": {1}}, some_faces)
    with pytest.raises(ValueError, match="JSON"):
        cached_faces({"a": float("nan")}, some_faces)


def test_a_failing_build_leaves_no_entry_and_its_error_passes(folder: Path) -> None:
    def broken() -> Faces:
        raise PermissionError("source")

    with pytest.raises(PermissionError, match="source"):
        cached_faces(KEY, broken)
    assert entries(folder) == []
    assert_equal(cached_faces(KEY, some_faces), some_faces())


def crash(moment: str) -> None:
    def die(*_: object, **__: object) -> None:
        os._exit(7)

    def half(file: BinaryIO, array: np.ndarray, **_: object) -> None:
        file.write(array.tobytes()[:20])
        file.flush()
        os._exit(7)

    if moment == "writing an array":
        np.save = half
    else:
        json.dump = die
    cached_faces(KEY, some_faces)


@pytest.mark.parametrize("moment", ["writing an array", "writing the notes"])
def test_a_crash_halfway_leaves_no_entry(folder: Path, moment: str) -> None:
    crashed = FORK.Process(target=crash, args=(moment,))
    crashed.start()
    crashed.join(60)
    assert crashed.exitcode == 7
    (leftover,) = entries(folder)
    assert list(leftover.glob("*.npy")), "the crash came too early to test anything"
    assert_equal(cached_faces(KEY, some_faces), some_faces())
    assert leftover not in entries(folder)
    assert len(entries(folder)) == 1
    cached_faces(KEY, never)


def cut(entry: Path) -> None:
    with (entry / "images.npy").open("r+b") as file:
        file.truncate(200)


def flip_a_byte(entry: Path) -> None:
    content = bytearray((entry / "identities.npy").read_bytes())
    content[-8] ^= 1
    (entry / "identities.npy").write_bytes(content)


def change_notes(entry: Path, **changes: object) -> None:
    stored = json.loads((entry / "entry.json").read_text())
    stored["notes"].update(changes)
    (entry / "entry.json").write_text(json.dumps(stored))


DAMAGES = {
    "cut": cut,
    "flipped": flip_a_byte,
    "empty array": lambda entry: (entry / "images.npy").write_bytes(b""),
    "no array": lambda entry: (entry / "identities.npy").unlink(),
    "no notes": lambda entry: (entry / "entry.json").unlink(),
    "cut notes": lambda entry: (entry / "entry.json").write_text('{"arrays": {'),
    "other notes": lambda entry: (entry / "entry.json").write_text("[1, 2]"),
    "empty notes": lambda entry: (entry / "entry.json").write_text("{}"),
    "no bytes of text": lambda entry: (entry / "entry.json").write_bytes(b"\xff\xfe"),
    "names lost": lambda entry: change_notes(entry, names=["ann"]),
    "skips lost": lambda entry: change_notes(entry, skipped=[["one"]]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_again(folder: Path, damage: str) -> None:
    cached_faces(KEY, some_faces)
    (entry,) = entries(folder)
    DAMAGES[damage](entry)
    with pytest.raises(AssertionError, match="built again"):
        cached_faces(KEY, never)
    assert_equal(cached_faces(KEY, some_faces), some_faces())
    cached_faces(KEY, never)


def test_maps_survive_that_their_entry_is_deleted(folder: Path) -> None:
    faces = cached_faces(KEY, some_faces)
    subprocess.run(["rm", "-r", str(folder)], check=True)
    assert_equal(faces, some_faces())
    assert_equal(cached_faces(KEY, some_faces), some_faces())


def race(start: Barrier, log: Path, answers: "Queue[int]") -> None:
    def build() -> Faces:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.4)
        return some_faces()

    start.wait()
    faces = cached_faces(KEY, build)
    assert_equal(faces, some_faces())
    answers.put(os.getpid())


def test_processes_that_start_at_once_build_once(tmp_path: Path) -> None:
    n_processes, log = 3, tmp_path / "log"
    start, answers = FORK.Barrier(n_processes), FORK.Queue()
    running = [FORK.Process(target=race, args=(start, log, answers)) for _ in range(n_processes)]
    for process in running:
        process.start()
    found = {answers.get(timeout=60) for _ in running}
    for process in running:
        process.join(60)
    assert found == {process.pid for process in running}
    assert log.read_text() == "built\n"


def test_a_read_only_folder_serves_its_entries_and_says_what_is_wrong_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with public_folder(monkeypatch) as folder, unprivileged():
        cached_faces(KEY, some_faces)
        folder.chmod(0o555)
        assert_equal(cached_faces(KEY, never), some_faces())
        with pytest.raises(ValueError, match=r"FEDFACE_CACHE needs .*Permission denied"):
            cached_faces({"other": 1}, never)
        with pytest.raises(ValueError, match=r"FEDFACE_CACHE needs .*Permission denied"):
            spill([np.zeros((2, 2, 3), np.uint8)])
        folder.chmod(0o755)


def test_an_entry_that_may_not_be_read_is_an_error_not_a_reason_to_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with public_folder(monkeypatch) as folder:
        cached_faces(KEY, some_faces)
        folder.chmod(0o777)
        for lock in folder.glob("*.lock"):
            lock.chmod(0o666)
        if os.geteuid() != 0:
            (entry,) = entries(folder)
            entry.chmod(0)
        with (
            unprivileged(),
            pytest.raises(ValueError, match=r"FEDFACE_CACHE .*Permission denied"),
        ):
            cached_faces(KEY, never)


def test_entries_are_for_their_owner_only(folder: Path) -> None:
    cached_faces(KEY, some_faces)
    (entry,) = entries(folder)
    assert entry.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_named_and_leaves_no_entry(folder: Path) -> None:
    big = Faces(np.zeros((4, 256, 256, 3), np.uint8), np.zeros(4, np.int64), ("ann",))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ValueError, match=r"FEDFACE_CACHE needs .* with 0\.8 MB free, found"):
            cached_faces(KEY, lambda: big)
        with pytest.raises(ValueError, match="FEDFACE_CACHE"):
            spill(big.images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(folder) == []


def test_a_file_in_the_folders_place_is_named(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(ValueError, match=r"FEDFACE_CACHE needs .*cache: File exists"):
        cached_faces(KEY, some_faces)


def test_the_folder_is_the_users_own_unless_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("FEDFACE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    for unset in (lambda: monkeypatch.setenv("FEDFACE_CACHE", ""), monkeypatch.undo):
        unset()
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("FEDFACE_CACHE", raising=False)
        assert cache_folder() == tmp_path / ".cache" / "fedface"


def test_cached_carries_any_arrays_and_notes() -> None:
    entry = Entry({"a": np.arange(3), "none": np.zeros((0, 2))}, {"text": "ä", "list": [1, None]})
    found = cached(KEY, lambda: entry, lambda e: e, lambda e: e)
    assert np.array_equal(found.arrays["a"], [0, 1, 2])
    assert found.arrays["none"].shape == (0, 2)
    assert found.notes == {"text": "ä", "list": [1, None]}


def test_object_arrays_are_refused(folder: Path) -> None:
    entry = Entry({"a": np.array([{}])}, {})
    with pytest.raises(ValueError, match="allow_pickle"):
        cached(KEY, lambda: entry, lambda e: e, lambda e: e)
    assert entries(folder) == []


def test_spill_stacks_and_leaves_no_file(folder: Path) -> None:
    images = some_faces().images
    found = spill(image[:, ::-1] for image in images)
    assert np.array_equal(found, images[:, :, ::-1])
    assert not found.flags.writeable
    assert list(folder.iterdir()) == []


def test_spill_needs_equal_uint8_images() -> None:
    with pytest.raises(ValueError, match="at least one image, got none"):
        spill([])
    with pytest.raises(ValueError, match=r"uint8 \(2, 2, 3\), got uint8 \(2, 3, 3\)"):
        spill([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)])
    with pytest.raises(ValueError, match="got float64"):
        spill([np.zeros((2, 2, 3))])


def test_file_digest_tells_rows_apart() -> None:
    rows = [["a", 1], ["b", 2]]
    assert file_digest(rows) == file_digest([("a", 1), ("b", 2)])
    others = ([], [["a", 1]], [["b", 2], ["a", 1]], [["a", 1], ["b", 3]], [["a", 1, "b", 2]])
    assert len({file_digest(rows), *map(file_digest, others)}) == 6
