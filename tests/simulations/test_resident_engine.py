"""The resident engine on Ray itself. Each test starts Ray, which takes seconds."""

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from ray._private.state import actors
from ray.cluster_utils import Cluster
from rich.console import Console

from clients.arrays import HeldArray
from fedface.config import ConfigError
from fedface.report.run_folder import RunFolder
from simulations import app
from simulations.engine import ResidentEngine, cohort_memory
from simulations.engine.workers import ENVIRONMENT
from simulations.execution import run
from strategies.cohorts import exchange
from tests.simulations.in_process import in_process
from tests.simulations.ray_processes import MARK, kill_all, left_after
from tests.simulations.test_execution import CARRYING, facts, lasting
from tests.simulations.tiny import tiny_config

slow = pytest.mark.slow


def telling_app(n_deaths: Path | None = None) -> ClientApp:
    """Clients add one to the weights and say which process they are; client 1 may end it."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        if n_deaths is not None and node == 1 and (left := int(n_deaths.read_text())):
            n_deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        weights = message.content["arrays"]["w"].numpy() + node
        pid = Array(torch.tensor(os.getpid()).numpy())
        content = {"arrays": ArrayRecord({"w": Array(weights)}), "pid": ArrayRecord({"pid": pid})}
        return Message(RecordDict(content), reply_to=message)

    return made


def rounds(grid: Grid, n_clients: int, n_rounds: int = 1) -> list[dict[int, Message]]:
    answers = []
    for _ in range(n_rounds):
        record = ArrayRecord({"w": Array(torch.ones(300, 100).numpy())})
        messages = {
            n: Message(RecordDict({"arrays": record}), n, "train") for n in range(n_clients)
        }
        answers.append(exchange(grid, messages, 120))
    return answers


def pid(reply: Message) -> int:
    return int(reply.content["pid"]["pid"].numpy())


@slow
@pytest.mark.ci
def test_its_numbers_are_those_of_the_other_engines_whatever_the_number_of_workers(
    tmp_path: Path,
) -> None:
    folders = []
    for name, engine in (("flower", {}), ("two", {"num_cpus": 2}), ("one", {"num_cpus": 1})):
        settings = {} if name == "flower" else {"engine": {"name": "resident", **engine}}
        config = tiny_config(tmp_path / name, **CARRYING, **settings)
        app._worker.cache_clear()
        if name == "flower":
            with in_process():
                run(config, Console(quiet=True))
        else:
            run(config, Console(quiet=True))
        folders.append(config.folder)
    assert lasting(folders[0]) == lasting(folders[1]) == lasting(folders[2])
    assert facts(folders[0]) == facts(folders[1]) == facts(folders[2])


@slow
def test_workers_stay_and_write_where_the_server_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    found: dict[str, object] = {}

    def server(grid: Grid) -> None:
        first, second = rounds(grid, 6, 2)
        pids = [{pid(r) for r in answers.values()} for answers in (first, second)]
        found["pids"] = pids
        found["held"] = all(isinstance(r.content["arrays"]["w"], HeldArray) for r in first.values())
        found["sums"] = {
            n: float(r.content["arrays"]["w"].numpy().mean()) for n, r in first.items()
        }

    try:
        ResidentEngine(num_cpus=2).run(server, telling_app(), 6)
        first_pids, second_pids = found["pids"]  # type: ignore[misc]
        assert second_pids <= first_pids and 1 <= len(first_pids) <= 2
        assert os.getpid() not in first_pids
        assert found["held"] and found["sums"] == {n: n + 1.0 for n in range(6)}
        assert left_after(mark, 20) == []
    finally:
        kill_all(mark)


@slow
@pytest.mark.parametrize("started", ["by the engine", "before"])
def test_workers_have_the_allocator_settings_from_their_start(
    monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    found: dict[str, str] = {}
    client_app = ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        lines = Path("/proc/self/environ").read_bytes().decode().split("\0")
        first = dict(line.partition("=")[::2] for line in lines)
        known = {name: first.get(name, "") for name in ENVIRONMENT}
        return Message(RecordDict({"environment": ConfigRecord(known)}), reply_to=message)

    def server(grid: Grid) -> None:
        (reply,) = exchange(grid, {0: Message(RecordDict(), 0, "train")}, 120).values()
        found.update({name: str(v) for name, v in reply.content["environment"].items()})

    try:
        if started == "before":
            ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        ResidentEngine(num_cpus=1).run(server, client_app, 1)
        inherited = ("OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
        assert {name: found[name] for name in inherited} == {n: ENVIRONMENT[n] for n in inherited}
    finally:
        ray.shutdown()
        kill_all(mark)


@slow
def test_several_runs_share_one_ray_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    engine, pids, nodes = ResidentEngine(num_cpus=1), [], []

    def server(grid: Grid) -> None:
        (answers,) = rounds(grid, 2)
        pids.append({pid(r) for r in answers.values()})
        nodes.append([node["NodeID"] for node in ray.nodes()])

    try:
        with engine.ready():
            for _ in range(2):
                engine.run(server, telling_app(), 2)
        assert nodes[0] == nodes[1]
        assert not pids[0] & pids[1], "each run has workers of its own"
        assert left_after(mark, 20) == []
    finally:
        kill_all(mark)


@slow
@pytest.mark.ci
@pytest.mark.parametrize("n_deaths", [1, 2])
def test_a_killed_worker_costs_at_most_its_client(tmp_path: Path, n_deaths: int) -> None:
    deaths = tmp_path / "deaths"
    deaths.write_text(str(n_deaths))
    found: list[dict[int, Message]] = []
    failed: list[set[int]] = []
    means: list[dict[int, float]] = []

    def server(grid: Grid) -> None:
        found.extend(rounds(grid, 5, 2))
        for answers in found:
            failed.append({n for n, r in answers.items() if r.has_error()})
            means.append(
                {
                    n: float(r.content["arrays"]["w"].numpy().mean())
                    for n, r in answers.items()
                    if r.has_content()
                }
            )

    ResidentEngine(num_cpus=2).run(server, telling_app(deaths), 5)
    first, second = failed
    assert first == (set() if n_deaths == 1 else {1}) and second == set()
    assert means[1] == {n: n + 1.0 for n in range(5)}
    assert means[0] == {n: m for n, m in means[1].items() if n not in first}


@slow
@pytest.mark.parametrize("reachable", [True, False])
def test_it_joins_a_cluster_and_works_on_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """Two Ray nodes on this machine; updates of one that shares no memory come with the answer."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    if not reachable:
        monkeypatch.setattr(cohort_memory, "_inode", lambda file: (0, 0))
    found: dict[str, object] = {}

    def server(grid: Grid) -> None:
        (answers,) = rounds(grid, 6)
        found["means"] = {
            n: float(r.content["arrays"]["w"].numpy().mean()) for n, r in answers.items()
        }
        found["nodes"] = {a["NodeID"] for a in list_actors()}

    def list_actors() -> list[dict[str, str]]:
        alive = [a for a in actors().values() if a["State"] == "ALIVE"]
        return [a["Address"] for a in alive]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ResidentEngine(address=cluster.address).run(server, telling_app(), 6)
        assert found["means"] == {n: n + 1.0 for n in range(6)}
        assert len(found["nodes"]) == 2  # type: ignore[arg-type]
    finally:
        cluster.shutdown()
        kill_all(mark)


@slow
def test_a_run_whose_worker_is_killed_ends_with_the_same_model(tmp_path: Path) -> None:
    """One kill -9 in a real run: the client is tried again and no number changes."""
    whole = tiny_config(tmp_path / "whole", **CARRYING, engine={"name": "in_process"})
    app._worker.cache_clear()
    run(whole, Console(quiet=True))
    broken = tiny_config(
        tmp_path / "broken", **CARRYING, engine={"name": "resident", "num_cpus": 1}
    )
    flag = tmp_path / "killed"
    source = killing_app(broken, flag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "client_app", lambda config: source)
        run(broken, Console(quiet=True))
    assert flag.exists(), "nobody was killed"
    assert lasting(whole.folder) == lasting(broken.folder)
    assert not any(event["rejected"] for event in RunFolder(broken.folder).events("round"))


def killing_app(config: object, flag: Path) -> ClientApp:
    """The run's own app; the first training of site 2 ends its process."""
    inner, made = app.client_app(config), ClientApp()  # type: ignore[arg-type]

    @made.query()
    def query(message: Message, context: Context) -> Message:
        return inner(message, context)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return inner(message, context)

    @made.train()
    def train(message: Message, context: Context) -> Message:
        reply = inner(message, context)
        if int(context.node_config["partition-id"]) == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    return made


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_cpus": 1, "client_resources": {"num_cpus": 2}}, "num_cpus needs >="),
        ({"address": "auto", "num_cpus": 2}, "num_cpus needs to be null with an address"),
        ({"object_store_bytes": 1000}, "object_store_bytes"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ResidentEngine(**settings)  # type: ignore[arg-type]


@slow
def test_more_cpus_than_there_are_is_a_fault_of_the_configuration() -> None:
    engine = ResidentEngine(client_resources={"num_cpus": 4096})
    with pytest.raises(ConfigError, match=r"client_resources\.num_cpus: needed 4096 CPUs"):
        engine.run(lambda grid: None, telling_app(), 2)
