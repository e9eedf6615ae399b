import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
import torch

from fedface.report.run_folder import Checkpoint, RunFolder
from tests.benchmarks.by_path import BENCHMARKS, script

script("measuring")
kill_anywhere = script("kill_anywhere")


def forked(work) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_a_process_that_ends_in_time_was_not_killed():
    assert kill_anywhere.ended(forked(lambda: None), 10)


def test_a_process_at_work_is_killed():
    process = forked(lambda: sleep(60))
    assert not kill_anywhere.ended(process, 0.05)
    kill_anywhere.killed(process)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("end", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_run_that_fails_by_itself_is_no_success(end):
    with pytest.raises(RuntimeError, match="needs to end with code 0"):
        kill_anywhere.ended(forked(end), 10)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", {}, {})
    for server_round in (1, 2):
        folder.append({"event": "round", "round": server_round, "seconds": 1.5})
        folder.save(Checkpoint(server_round, {"w": torch.ones(2)}, {"m": torch.ones(1)}))
    return folder


def test_the_fingerprint_sees_models_state_and_facts_but_not_the_time(folder: RunFolder):
    before = kill_anywhere.fingerprint(folder)
    assert set(before) == {
        "checkpoints/round-000001.safetensors",
        "checkpoints/round-000002.safetensors",
        "checkpoints/state-round-000002.safetensors",
        "facts",
    }
    events = folder.path / "events.jsonl"
    events.write_text(events.read_text().replace("1.5", "2.5"))
    assert kill_anywhere.fingerprint(folder) == before
    folder.append({"event": "more"})
    assert kill_anywhere.fingerprint(folder)["facts"] != before["facts"]
    folder.save(Checkpoint(2, {"w": torch.ones(2)}, {"m": torch.zeros(1)}))
    found = kill_anywhere.fingerprint(folder)
    assert (
        found["checkpoints/state-round-000002.safetensors"]
        != before["checkpoints/state-round-000002.safetensors"]
    )


def test_where_a_kill_fell(folder: RunFolder):
    (folder.path / "checkpoints" / ".round-000003.safetensors.partial-7").touch()
    kill = kill_anywhere.where(4, 0.25, folder)
    assert (kill.run, kill.completed, kill.half_written, kill.facts) == (4, 2, 1, 2)


@pytest.mark.slow
def test_killed_runs_end_like_the_unbroken_one(tmp_path: Path):
    output = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, BENCHMARKS / "kill_anywhere.py", "--kills", "3", "--output", output],
        check=True,
        cwd=BENCHMARKS.parent,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        timeout=600,
    )
    found = json.loads(output.read_text())
    assert found["n_kills"] == 3 and found["differing"] == [] and found["n_compared"] > 8
