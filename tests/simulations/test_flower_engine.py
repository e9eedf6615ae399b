"""The real thing: Flower on Ray. Each test starts Ray, which takes seconds."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

import pytest
import yaml
from rich.console import Console

from fedface.report.run_folder import RunFolder
from simulations.app import client_app
from simulations.build import site_folder
from simulations.engine.flower import FlowerEngine
from simulations.engine.workers import EngineFailed
from simulations.execution import run
from simulations.server import RunFailed
from tests.simulations.faulty import run_with
from tests.simulations.in_process import in_process
from tests.simulations.ray_processes import MARK, kill_all, left_after
from tests.simulations.test_execution import CARRYING, lasting
from tests.simulations.tiny import tiny_config, tiny_content

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds until a test is given up; enough on a machine that is ten times too busy."""


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of a test; whatever they leave behind is ended."""
    mark = uuid4().hex
    yield mark
    kill_all(mark)


def command(mark: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command in a session and an environment of its own, far from the repository."""
    return subprocess.Popen(
        arguments,
        cwd="/",
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until ``condition`` holds while ``process`` works."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert monotonic() < deadline, "the run came to no checkpoint"
        sleep(0.05)


def fedface() -> str:
    return str(Path(sys.executable).with_name("fedface"))


LONG = {**CARRYING, "federation": {"clients_per_round": 3, "n_rounds": 60}}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the tests below break, unbroken and without Ray."""
    config = tiny_config(tmp_path_factory.mktemp("long"), **LONG)
    with in_process():
        run(config, Console(quiet=True))
    return config.folder


def started_long_run(mark: str, folder: Path) -> subprocess.Popen[str]:
    """A run that has just written its third checkpoint of sixty."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_content(folder, **LONG)))
    process = command(mark, fedface(), "run", str(folder / "tiny.yaml"))
    checkpoints = RunFolder(folder / "tiny").checkpoint_rounds
    wait_for(lambda: len(checkpoints()) >= 3, process)
    return process


def resumed(mark: str, folder: Path) -> None:
    process = command(mark, fedface(), "run", str(folder / "tiny.yaml"), "--resume")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "round  1/60" not in out and "round 60/60" in out


@pytest.mark.ci
def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    folders = []
    for n_workers in (1, 2):
        config = tiny_config(
            tmp_path / str(n_workers), engine={"name": "flower", "num_cpus": n_workers}, **CARRYING
        )
        run(config, Console(quiet=True))
        folders.append(config.folder)
    config = tiny_config(tmp_path / "none", **CARRYING)
    with in_process():
        run(config, Console(quiet=True))
    assert lasting(folders[0]) == lasting(folders[1]) == lasting(config.folder)
    assert len(list((folders[0] / "sites").iterdir())) == 4, "sites keep their heads in the run"


@pytest.mark.ci
def test_a_killed_run_resumes_bit_for_bit(long_run: Path, tmp_path: Path, mark: str) -> None:
    process = started_long_run(mark, tmp_path)
    kill_all(mark)
    assert process.wait(timeout=10) == -signal.SIGKILL
    process.communicate()
    assert RunFolder(tmp_path / "tiny").checkpoint_rounds()[-1] < 60
    resumed(mark, tmp_path)
    assert lasting(tmp_path / "tiny") == lasting(long_run)
    assert left_after(mark, 60) == []


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "process"])
def test_ctrl_c_ends_the_run_and_leaves_it_resumable(
    whole_group: bool, long_run: Path, tmp_path: Path, mark: str
) -> None:
    """A terminal sends the signal to Ray's processes too."""
    process = started_long_run(mark, tmp_path)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith("error: stopped; continue with --resume\n") and "Traceback" not in err
    assert left_after(mark, 60) == []
    if whole_group:
        resumed(mark, tmp_path)
        assert lasting(tmp_path / "tiny") == lasting(long_run)


def test_ray_ends_with_a_run_that_is_killed_alone(tmp_path: Path, mark: str) -> None:
    process = started_long_run(mark, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert left_after(mark, 120) == []


def test_sites_that_raise_or_send_nonsense_do_not_end_the_run(tmp_path: Path) -> None:
    """Site 0 raises in Flower's hands, site 1 finds its head damaged, site 3 sends NaN."""
    config = tiny_config(tmp_path, federation={"n_clients": 5})
    site = site_folder(config, 1)
    site.mkdir(parents=True)
    (site / "head-round-000000.safetensors").write_bytes(b"no head")
    run_with(config, {0: "raises", 3: "NaN"})
    rounds = RunFolder(config.folder).events("round")
    assert len(rounds) == 3
    for event in rounds:
        assert list(event["rejected"]) == ["0", "1", "3"]
        assert event["rejected"]["0"].startswith("client failed: ")
        assert event["rejected"]["1"].startswith(f"client failed: ValueError: {site}")
        assert "needs finite values, got NaN" in event["rejected"]["3"]
        assert [client["client"] for client in event["clients"]] == [2, 4]
        assert event["kept_global"] is None


def test_a_run_in_which_every_site_fails_ends_with_code_one(tmp_path: Path, mark: str) -> None:
    content = tiny_content(tmp_path, training={"optimizer": {"learning_rate": 1e30}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    process = command(
        mark, sys.executable, str(ROOT / "simulations" / "run.py"), str(tmp_path / "tiny.yaml")
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("error: run failed: 3 rounds in a row kept the global model")
    assert "lower training.optimizer.learning_rate" in err and "Traceback" not in err
    assert "dropped client 0" in out
    assert left_after(mark, 60) == []


def test_the_scripts_own_folder_first_on_the_path_harms_nothing(tmp_path: Path, mark: str) -> None:
    """``python simulations/run.py`` puts simulations/ before everything, in every worker."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_content(tmp_path)))
    process = command(
        mark, sys.executable, str(ROOT / "simulations" / "run.py"), str(tmp_path / "tiny.yaml")
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "dropped client" not in out and "run folder:" in out
    assert left_after(mark, 60) == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_site_that_kills_its_worker_every_time_makes_the_run_fail_not_hang(
    n_workers: int, tmp_path: Path, mark: str
) -> None:
    """Flower 1.41 puts the dead worker back into its pool, where it fails every later task."""
    process = command(
        mark, sys.executable, "-m", "tests.simulations.faulty", str(tmp_path), str(n_workers)
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "run failed: a worker's process was killed in round 1" in err
    assert left_after(mark, 60) == []


@pytest.mark.ci
def test_a_worker_that_is_killed_once_costs_nothing_but_time(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "broken", **CARRYING)
    config.output.mkdir(parents=True)
    run_with(config, {2: "dies once"})
    assert (config.output / "died").exists()
    unbroken = tiny_config(tmp_path / "unbroken", **CARRYING)
    with in_process():
        run(unbroken, Console(quiet=True))
    assert lasting(config.folder) == lasting(unbroken.folder)
    assert not any(event["rejected"] for event in RunFolder(config.folder).events("round"))


class Unexpected(Exception):
    pass


def test_what_the_server_raises_comes_out_unchanged(tmp_path: Path) -> None:
    error = Unexpected("as it is")

    def server(grid: object) -> None:
        raise error

    python_path = os.environ.get("PYTHONPATH")
    config = tiny_config(tmp_path)
    with pytest.raises(Unexpected) as caught:
        config.engine.run(server, client_app(config), 4)
    assert caught.value is error
    assert os.environ.get("PYTHONPATH") == python_path


def test_a_simulation_that_breaks_down_stops_the_server(tmp_path: Path) -> None:
    """More CPUs a client than any machine has: Ray starts no worker, and nobody ever replies."""
    ended = []

    def server(grid: object) -> None:
        try:
            while True:
                list(grid.get_node_ids())  # type: ignore[attr-defined]
                sleep(0.01)
        finally:
            ended.append(True)

    engine = FlowerEngine(client_resources={"num_cpus": 4096})
    with pytest.raises(EngineFailed, match="broke down: ValueError: ActorPool is empty"):
        engine.run(server, client_app(tiny_config(tmp_path)), 4)
    deadline = monotonic() + 10
    while not ended and monotonic() < deadline:
        sleep(0.05)
    assert ended


def test_a_failed_run_is_raised_through_the_engine(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, federation={"n_rounds": 2, "max_failed_rounds": 1})
    with pytest.raises(RunFailed, match=r"^1 rounds in a row .* client 1: client failed: "):
        run_with(config, dict.fromkeys(range(4), "raises"))
