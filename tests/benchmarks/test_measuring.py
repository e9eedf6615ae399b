import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.by_path import BENCHMARKS, script

measuring = script("measuring")
MEGABYTES = 64


def alive(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_the_sampler_sees_an_allocation_that_is_gone_afterwards():
    with measuring.PeakMemory(0.01) as quiet:
        time.sleep(0.03)
    with measuring.PeakMemory(0.01) as memory:
        block = bytearray(b"x") * (MEGABYTES << 20)
        samples = memory.n_samples
        while memory.n_samples < samples + 2:
            time.sleep(0.01)
        del block
    assert quiet.n_samples >= 2 <= memory.n_samples
    assert 0.9 * MEGABYTES < (memory.peak - quiet.peak) / 2**20 < 1.5 * MEGABYTES


def test_children_count_and_shared_pages_count_once():
    block = bytearray(b"x") * (MEGABYTES << 20)
    alone = measuring.proportional_bytes(os.getpid())
    child = os.fork()
    if child == 0:
        sum(block[:: 1 << 12])  # touches every page
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        both = measuring.proportional_bytes(os.getpid())
        assert child in measuring.tree(os.getpid(), measuring.processes())
        assert measuring.proportional_bytes(child) > 0.4 * len(block)
        assert both < alone + 0.5 * len(block)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_cpu_seconds_of_the_tree():
    def spin():
        code = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)

    timing = measuring.timed(spin)
    assert 0.28 <= timing.cpu_seconds <= 0.6
    assert timing.seconds >= 0.28
    assert measuring.timed(lambda: time.sleep(0.2)).cpu_seconds < 0.1


def test_a_tree_is_descendants_and_what_stayed_in_the_roots_session():
    process = measuring.Process
    there = {
        1: process(0, 1, 0.0),
        10: process(1, 10, 0.0),
        11: process(10, 10, 0.0),
        12: process(11, 12, 0.0),
        13: process(1, 10, 0.0),  # its parent died
        14: process(13, 14, 0.0),
        20: process(1, 20, 0.0),
    }
    assert measuring.tree(10, there) == {10, 11, 12, 13, 14}
    assert measuring.tree(11, there) == {11, 12}
    assert measuring.tree(99, there) == set()


def test_a_case_answers_from_a_fresh_process(tmp_path, monkeypatch):
    path = tmp_path / "tiny_benchmark.py"
    path.write_text(
        "import json, os, subprocess, sys\n"
        "from measuring import answer\n"
        "def main(arguments):\n"
        "    case = json.loads(arguments[1])\n"
        "    if case['n'] < 0:\n"
        "        raise ValueError('n needs to be >= 0')\n"
        "    left = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    answer({'double': 2 * case['n'], 'pid': os.getpid(), 'left': left.pid,\n"
        "            'omp': os.environ['OMP_NUM_THREADS'], 'x': os.environ.get('X')})\n"
        "    if case['n'] == 7:\n"
        "        import time\n"
        "        time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS), str(tmp_path)]))
    other = subprocess.Popen(["sleep", "60"])
    result = measuring.run_case(path, {"n": 2}, environment={"X": "1"})
    wrong = measuring.run_case(path, {"n": -1})
    slow = measuring.run_case(path, {"n": 7}, timeout=1.5)
    assert (result["n"], result["double"], result["omp"], result["x"]) == (2, 4, "1", "1")
    assert result["pid"] != os.getpid()
    assert wrong == {"n": -1, "error": "ended with code 1: ValueError: n needs to be >= 0"}
    time.sleep(0.05)
    assert not alive(result["left"]), "it had a session of its own"
    assert other.poll() is None
    other.kill()
    other.wait()
    assert slow["error"].startswith("took longer than 1.5 s")


def test_a_peak_is_of_the_time_since_it_was_forgotten():
    block = bytearray(b"x") * (MEGABYTES << 20)
    del block
    high = measuring.own_peak_bytes()
    measuring.forget_peak()
    assert measuring.own_peak_bytes() < high - 0.8 * (MEGABYTES << 20)
    assert abs(measuring.own_peak_bytes() - measuring.own_bytes()) < 8 << 20


def test_the_json_has_all_fields(tmp_path):
    path = tmp_path / "new" / "figures.json"
    machine = measuring.describe_machine()
    measuring.write_json(path, "x", {**machine, "seed": 3}, {"quick": True}, {"results": [1]})
    content = json.loads(path.read_text())
    for name in (
        "benchmark",
        "date",
        "machine",
        "cpu_model",
        "cores",
        "memory_bytes",
        "load_average",
        "git_commit",
        "packages",
        "python",
        "seed",
        "settings",
        "results",
    ):
        assert name in content, name
    assert content["packages"]["torch"]
    assert content["cores"] == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="JSON"):
        measuring.write_json(path, "x", machine, {}, {"results": float("nan")})


def test_what_does_not_fit_is_left_out():
    assert measuring.too_large(1e9, 2e9) is None
    assert measuring.too_large(2e9, 2e9) == "left out: needs about 2.0 GB, found 2.0 GB"


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    made = []

    def run(command, check):
        made.append(command[1:])
        (tmp_path / "peer").mkdir(exist_ok=True)

    monkeypatch.setattr(measuring.subprocess, "run", run)
    python = measuring.environment_of("peer", [["torch==1"], ["peer"]], tmp_path)
    assert python == str(tmp_path / "peer" / "bin" / "python")
    assert [command[-1] for command in made] == [str(tmp_path / "peer"), "torch==1", "peer"]
    measuring.environment_of("peer", [["torch==1"], ["peer"]], tmp_path)
    assert len(made) == 3
    measuring.environment_of("peer", [["torch==2"], ["peer"]], tmp_path)
    assert len(made) == 6
