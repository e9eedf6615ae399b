"""Whole runs and the faults of the machine they run on; docs/reliability.md lists them all."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import Error, Message
from rich.console import Console
from safetensors.torch import load_file

from fedface.report.run_folder import RunFolder, RunFolderError
from simulations import app, server
from simulations.engine.flower import FlowerEngine
from simulations.execution import run
from simulations.schema import RunConfig
from simulations.server import RunFailed
from tests.simulations.in_process import in_process
from tests.simulations.test_execution import CARRYING
from tests.simulations.tiny import tiny_config, tiny_content

ROOT = Path(__file__).parents[2]
ENGINE = {"engine": {"name": "in_process"}}


def done(config: RunConfig, **options: bool) -> str:
    """Runs ``config`` in this process; returns what was printed."""
    out = StringIO()
    app._worker.cache_clear()
    with in_process():
        run(config, Console(file=out, width=200), **options)
    return out.getvalue()


def assert_same(found: Path, expected: Path) -> None:
    """Every model and the last state byte for byte, every site's head number for number."""
    for pattern in ("round-*.safetensors", "state-round-*.safetensors"):
        a, b = (
            {p.name: p.read_bytes() for p in (folder / "checkpoints").glob(pattern)}
            for folder in (found, expected)
        )
        assert a and a == b
    heads = sorted(p.relative_to(expected) for p in expected.rglob("head-round-*.safetensors"))
    assert heads
    for head in heads:
        own, other = load_file(found / head), load_file(expected / head)
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("unbroken"), **CARRYING)
    done(config)
    return config.folder


# ---- a disk that fills up


@contextmanager
def full_from(call: int) -> Iterator[list[int]]:
    """From the ``call``-th time that something is brought to the disk, there is no room."""
    calls, fsync = [0], os.fsync

    def filling(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        yield calls


@pytest.mark.parametrize("call", [5, 6, 7, 9, 13])
def test_a_full_disk_stops_the_run_by_name_and_it_goes_on_when_there_is_room(
    call: int, unbroken: Path, tmp_path: Path
) -> None:
    """Facts of a round, its evaluation, its state, its model; the folder made is in calls 1-4."""
    config = tiny_config(tmp_path, **CARRYING)
    with full_from(call), pytest.raises(OSError, match=f"No space left.*'{config.folder}/") as full:
        done(config)
    assert full.value.errno == errno.ENOSPC
    folder = RunFolder(config.folder)
    assert folder.result() is None and not list(folder.path.rglob("*.partial-*"))
    text = (folder.path / "events.jsonl").read_text()
    assert not text or text.endswith("\n"), "no half line"
    folder.latest()  # nothing damaged
    done(config, resume=True)
    assert_same(config.folder, unbroken)


def test_a_full_disk_at_the_start_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **CARRYING)
    with full_from(1), pytest.raises(RunFolderError, match=r"needed a writable folder.*No space"):
        done(config)
    assert not RunFolder(config.folder).exists()


# ---- checkpoints that are not what was saved


def stopped_run(folder: Path) -> RunConfig:
    """The run, stopped after its second checkpoint."""
    config = tiny_config(folder, **CARRYING)
    with pytest.MonkeyPatch.context() as patch:
        save = RunFolder.save

        def stopping(self: RunFolder, checkpoint: Any) -> None:
            save(self, checkpoint)
            if checkpoint.server_round == 2:
                raise KeyboardInterrupt

        patch.setattr(RunFolder, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            done(config)
    return config


@pytest.mark.parametrize("name", ["round-000002", "state-round-000002"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_checkpoint_is_refused_and_deleting_it_goes_on_before(
    name: str, damage: str, stopped: Path, unbroken: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, **CARRYING)
    shutil.copytree(stopped, config.folder)
    (config.folder / "config.yaml").write_text(
        yaml.safe_dump(config.to_yaml_dict(), sort_keys=False)
    )
    path = config.folder / "checkpoints" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"flipped": data, "cut": data[:-5], "empty": b""}[damage])
    before = {p: p.read_bytes() for p in config.folder.rglob("*.safetensors")}
    with pytest.raises(RunFolderError, match=f"^{path}: needed "):
        done(config, resume=True)
    assert {p: p.read_bytes() for p in config.folder.rglob("*.safetensors")} == before
    (config.folder / "checkpoints" / "round-000002.safetensors").unlink()
    done(config, resume=True)
    assert_same(config.folder, unbroken)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped_run(tmp_path_factory.mktemp("stopped")).folder


# ---- two processes, two versions


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"n_rounds": 1}, **ENGINE)
    done(config)
    with RunFolder(config.folder).alone():
        for options in ({"replace": True}, {}):
            with pytest.raises(RunFolderError, match=r"found a (process at work|run)"):
                done(config, **options)
    assert RunFolder(config.folder).result() is not None
    (config.folder / "result.json").unlink()
    with (
        RunFolder(config.folder).alone(),
        pytest.raises(RunFolderError, match="that nobody works in, found a process at work"),
    ):
        done(config, resume=True)


def test_a_run_of_an_earlier_version_without_a_new_setting_is_resumed(tmp_path: Path) -> None:
    config = stopped_run(tmp_path)
    path = config.folder / "config.yaml"
    recorded = yaml.safe_load(path.read_text())
    for name in ("min_clients", "join_timeout"):
        del recorded["federation"][name]
    path.write_text(yaml.safe_dump(recorded))
    done(config, resume=True)
    assert RunFolder(config.folder).checkpoint_rounds() == [1, 2, 3, 4]


# ---- the crash-pool bug of Flower's Ray backend (with real Ray: test_flower_engine.py)


@pytest.mark.parametrize(
    "error",
    [
        "ActorDiedError",
        "RayActorError",
        "ActorUnavailableError",
        "WorkerCrashedError",
        "OutOfMemoryError",
    ],
)
def test_a_dead_worker_is_known_by_rays_own_errors(error: str) -> None:
    from ray import exceptions

    kind = getattr(exceptions, error)
    assert FlowerEngine().lost_worker(f"client failed: {kind}:<'the actor died'>")


@pytest.mark.parametrize(
    "why",
    [
        "client failed: RuntimeError: ray.exceptions.ActorDiedError",
        "no reply in time",
        "client failed: <class 'ValueError'>:<'ActorDiedError'>",
    ],
)
def test_other_failures_are_none(why: str) -> None:
    assert not FlowerEngine().lost_worker(why)


def test_a_worker_that_dies_in_the_local_evaluation_costs_a_restart_too(
    unbroken: Path, tmp_path: Path
) -> None:
    """Else the round's local figures would be those of some sites, and the next round's fail."""
    deaths, exchange = [1], server.exchange

    def dying(grid: Any, messages: dict[int, Message], timeout: float) -> dict[int, Message]:
        replies = exchange(grid, messages, timeout)
        if deaths and messages:
            deaths.pop()
            client, message = next(iter(messages.items()))
            reason = "<class 'ray.exceptions.ActorDiedError'>:<'gone'>"
            replies[client] = Message(Error(0, reason), reply_to=message)
        return replies

    config = tiny_config(tmp_path, **CARRYING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "exchange", dying)
        out = done(config)
    assert out.count("starting the workers anew") == 1 and "killed in round 1" in out
    assert_same(config.folder, unbroken)
    plain = [{**e, "seconds": 0} for e in RunFolder(unbroken).events()]
    assert [{**e, "seconds": 0} for e in RunFolder(config.folder).events()] == plain


def test_sites_that_never_answer_make_the_run_fail_not_complete(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"timeout": 0.2, "max_failed_rounds": 2})
    app._worker.cache_clear()
    with in_process(lambda *_: None), pytest.raises(RunFailed, match="no reply in time"):
        run(config, Console(quiet=True))
    assert RunFolder(config.folder).result() is None


# ---- the real thing: a file system of a few hundred kilobytes, and one that is read-only


def in_namespace(script: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where mounts are nobody else's."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def mounts() -> None:
    if shutil.which("unshare") is None or in_namespace("mount -t tmpfs none /mnt").returncode:
        pytest.skip("this machine lets nobody mount a file system of its own")


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_a_really_full_disk_ends_the_command_with_code_one(unbroken: Path, tmp_path: Path) -> None:
    content = tiny_content(tmp_path / "disk", **CARRYING, **ENGINE)
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    command = f"{sys.executable} simulations/run.py {tmp_path}/run.yaml"
    found = in_namespace(
        f"mount -t tmpfs -o size=60k none {tmp_path}/disk && {command};"
        f"echo code $?; mount -o remount,size=60m {tmp_path}/disk;"
        f"{command} --resume && cp -r {tmp_path}/disk/tiny {tmp_path}/kept; echo code $?"
    )
    assert "code 1" in found.stdout and found.stdout.endswith("code 0\n"), found
    assert "No space left on device" in found.stderr and "Traceback" not in found.stderr
    assert_same(tmp_path / "kept", unbroken)


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_a_read_only_disk_ends_the_command_by_name(tmp_path: Path) -> None:
    config = stopped_run(tmp_path / "disk")
    content = tiny_content(tmp_path / "disk", **CARRYING)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    found = in_namespace(
        f"mount --bind {tmp_path}/disk {tmp_path}/disk && mount -o remount,ro,bind "
        f"{tmp_path}/disk && {sys.executable} simulations/run.py {tmp_path}/run.yaml --resume;"
        "echo code $?"
    )
    assert found.stdout.endswith("code 2\n"), found
    assert f"error: {config.folder}: needed a writable folder, found" in found.stderr
    assert "Read-only file system" in found.stderr and "Traceback" not in found.stderr
