"""A federation of real processes: TLS, keys, gates, four sites and a stranger, each in a network
namespace of its own. Nothing is faked but the people.
"""

import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from simulations.build import build_data
from simulations.schema import load_run
from tests.deployment.network import (
    FEDFACE,
    FLWR,
    SERVER_ADDRESS,
    Network,
    Process,
    missing,
    network,
    wait_for,
)

WHY_NOT = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no network namespaces: {WHY_NOT}"),
]

SITES = ("a", "b", "c", "d")
PORT = 8443
SERVER = f"{SERVER_ADDRESS}:{PORT}"
RED_TEAM = """
[red_team]
name = "model_replacement"
malicious_share = 0.25
scale = 8.0
trigger = {name = "patch"}
goal = {name = "key"}
"""


def run_yaml(name: str, **changes: Any) -> dict[str, Any]:
    """A run of the four sites that also runs in simulation, with the same people at each site."""
    content = {
        "name": name,
        "data": {
            "faces": {
                "name": "renderer",
                "n_identities": 32,
                "images_per_identity": 8,
                "size": 16,
            },
            "split": {"test": 8, "calibration": 8},
        },
        "model": {
            "backbone": {"name": "small_conv", "widths": [4, 4, 8, 8], "embedding_size": 16},
            "head": {"name": "cosface", "scale": 16, "margin": 0.2},
        },
        "training": {
            "batch_size": 12,
            "optimizer": {"learning_rate": 0.02},
            "max_gradient_norm": 1.0,
        },
        "federation": {"n_clients": 4, "n_rounds": 2, "timeout": 400, "join_timeout": 200},
        "aggregator": {"name": "mean"},
        "evaluation": {"false_accept_rates": [0.1], "n_bootstrap": 40},
        "engine": {"name": "in_process"},
        "deployment": {"sites": list(SITES), "poll_seconds": 0.5},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    return content


class World:
    """The federation of this module, and what its operators and engineers do."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self.sites: dict[str, Process] = {}
        self.server: Process | None = None

    def fedface(self, where: str, *arguments: str) -> Any:
        return self.net.run(where, *FEDFACE, *arguments)

    def must(self, where: str, *arguments: str) -> str:
        done = self.fedface(where, *arguments)
        assert done.returncode == 0, done.stdout
        return str(done.stdout)

    def operator(self, *arguments: str) -> Any:
        return self.fedface("operator", *arguments, "--operator", "fed/operator")

    def write(self, content: dict[str, Any]) -> str:
        path = self.folder / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path.name

    def server_up(self) -> None:
        self.server = self.net.start(
            "server", "server.log", *FEDFACE, "server", "up", "--folder", "fed/server"
        )

    def start(self, name: str) -> None:
        """Starts a site; what it said before is forgotten."""
        (self.folder / f"{name}.log").unlink(missing_ok=True)
        self.sites[name] = self.net.start(
            name, f"{name}.log", *FEDFACE, "site", "up", "--folder", f"site-{name}"
        )

    def up(self, *names: str) -> None:
        for name in names:
            self.start(name)
        for name in names:
            wait_for(lambda name=name: self.is_online(name), f"site {name} is online")

    def is_online(self, name: str) -> bool:
        return f"site {name}: online" in self.operator("status").stdout

    def submitted(self, file: str, *options: str) -> Process:
        return self.net.start(
            "operator",
            f"submit-{file}.log",
            *FEDFACE,
            *("submit", file, "--operator", "fed/operator", *options),
        )

    def events(self, run: str, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "fed" / "server" / "runs" / run / "events.jsonl"
        if not path.is_file():
            return []
        facts = [json.loads(line) for line in path.read_text().splitlines()]
        return [fact for fact in facts if fact["event"] == kind]

    def weights(self, run: str, last_round: int) -> dict[str, torch.Tensor]:
        folder = self.folder / "fed" / "server" / "runs" / run / "checkpoints"
        return load_file(folder / f"round-{last_round:06d}.safetensors")

    def simulated(self, file: str, run: str, last_round: int) -> dict[str, torch.Tensor]:
        self.must("operator", "run", file, "--output", "simulated", "--replace")
        folder = self.folder / "simulated" / run / "checkpoints"
        return load_file(folder / f"round-{last_round:06d}.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that is up, four admitted sites with their own people and policies, all down."""
    folder = tmp_path_factory.mktemp("federation")
    with network(folder, ("server", *SITES, "operator", "stranger")) as net:
        made = World(net, folder)
        made.must(
            "operator",
            *("federation", "init", "fed", "--host", SERVER_ADDRESS, "--name", "test"),
            *("--port", str(PORT)),
        )
        first = made.write(run_yaml("first"))
        faces_of_sites(folder / first, folder / "faces")
        policy = made.must("operator", "site", "policy", first)
        everyones = "".join(x for x in policy.splitlines(True) if not x.startswith("runs ="))
        made.server_up()
        for name in SITES:
            said = made.must(
                name,
                *("site", "init", name, "--data", f"faces/{name}", "--server", SERVER),
                *("--ca", "fed/ca.crt", "--folder", f"site-{name}"),
            )
            assert "people" in said
            assert "a training step for a try" in said
            (folder / f"site-{name}" / "policy.toml").write_text(everyones)
        for name in SITES:
            key = f"site-{name}/keys/{name}.pub"
            wait_for(
                lambda name=name, key=key: (
                    made.operator("federation", "admit", name, key).returncode == 0
                ),
                f"site {name} is admitted",
            )
        yield made


def faces_of_sites(config: Path, folder: Path) -> None:
    """Writes the people whom the simulation deals to client i as image folders of site i."""
    data = build_data(load_run(config))
    for name, part in zip(SITES, data.parts, strict=True):
        for index in part:
            person = folder / name / data.train.names[data.train.identities[index]]
            person.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.train.images[index]).save(person / f"{index:06d}.png")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_strangers_are_refused(world: World) -> None:
    net = world.net
    world.must("stranger", "federation", "init", "theirs", "--host", SERVER_ADDRESS)
    (world.folder / "flower").mkdir()
    (world.folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{SERVER}"\n'
        f'root-certificates = "{world.folder}/fed/ca.crt"\n'
    )
    app = world.folder / "app"
    app.mkdir()
    (app / "code.py").write_text("app = 1\n")
    (app / "pyproject.toml").write_text(
        '[project]\nname = "theirs"\nversion = "1"\n[tool.flwr.app]\npublisher = "x"\n'
        '[tool.flwr.app.components]\nserverapp = "code:app"\nclientapp = "code:app"\n'
    )
    home = {"FLWR_HOME": str(world.folder / "flower"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    run = net.run("stranger", *FLWR, "run", str(app), "it", **home)
    register = net.run(
        "stranger", *FLWR, "supernode", "register", "site-a/keys/a.pub", "it", **home
    )
    for refused in (run, register):
        assert refused.returncode != 0
        assert "certificate of an operator" in " ".join(refused.stdout.split()), refused.stdout
    # Flower's own port is not to be had from outside, and the door opens for Fleet calls alone.
    direct = net.run("stranger", "curl", "-sk", "-m", "5", f"https://{SERVER_ADDRESS}:9443/health")
    assert direct.returncode == 7, "connection refused"
    codes = {}
    for path in ("v1/runtime/acquire-task", "v1/control/list-runs", "v1/fleet/register-node"):
        code = ("-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20", "-X", "POST")
        url = f"https://{SERVER}/{path}"
        codes[path] = net.run("stranger", "curl", "--cacert", "fed/ca.crt", *code, url).stdout
    assert codes == {
        "v1/runtime/acquire-task": "404",
        "v1/control/list-runs": "403",
        "v1/fleet/register-node": "404",
    }
    # An operator of another federation: his certificate is none here, and ours is none to him.
    (world.folder / "theirs" / "operator" / "ca.crt").write_bytes(
        (world.folder / "fed" / "ca.crt").read_bytes()
    )
    other = world.fedface("stranger", "status", "--operator", "theirs/operator")
    assert other.returncode != 0
    assert "admitted" not in other.stdout
    # The server's own certificate gives no orders either.
    server = world.folder / "fed" / "server" / "tls"
    pair = ("--cert", str(server / "server.crt"), "--key", str(server / "server.key"))
    url = f"https://{SERVER}/v1/control/list-runs"
    as_server = net.run(
        "stranger", "curl", "-s", "-X", "POST", "--cacert", "fed/ca.crt", *pair, url
    )
    assert "400 Bad Request" in as_server.stdout


def test_sites_with_an_unknown_key_or_another_authority_are_refused(world: World) -> None:
    for folder, ca in (("unknown", "fed/ca.crt"), ("misled", "theirs/ca.crt")):
        if not (world.folder / ca).exists():
            world.must("stranger", "federation", "init", "theirs", "--host", SERVER_ADDRESS)
        world.must(
            "stranger",
            *("site", "init", "stranger", "--data", "faces/a", "--server", SERVER),
            *("--ca", ca, "--folder", folder),
        )
    unknown = world.fedface("stranger", "site", "up", "--folder", "unknown")
    assert unknown.returncode not in (0, 2)
    assert "has an operator admitted" in unknown.stdout
    misled = world.fedface("stranger", "site", "up", "--folder", "misled")
    assert misled.returncode == 2
    assert "needed the certificate of the federation" in misled.stdout
    assert "stranger" not in world.operator("status").stdout


def test_keys_are_private_and_no_secret_is_in_a_log(world: World) -> None:
    secrets = [path for path in world.folder.rglob("*") if is_secret(path)]
    assert len(secrets) >= 6
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    needles = [
        line for path in secrets for line in path.read_text(errors="replace").splitlines()[1:2]
    ]
    logs = [*world.folder.glob("*.log"), *(world.folder / "fed" / "server").rglob("*.log")]
    for log in logs:
        text = log.read_text(errors="replace")
        assert not any(needle in text for needle in needles), log


def is_secret(path: Path) -> bool:
    return path.is_file() and (
        path.suffix == ".key" or (path.parent.name == "keys" and not path.suffix)
    )


def test_an_honest_run_gives_the_very_weights_of_the_simulation(world: World) -> None:
    world.up(*SITES)
    file = world.write(run_yaml("honest"))
    done = world.operator("submit", file)
    assert done.returncode == 0, done.stdout
    rounds = world.events("honest", "round")
    assert [len(event["clients"]) for event in rounds] == [4, 4]
    assert not any(event["rejected"] for event in rounds)
    assert equal(world.weights("honest", 2), world.simulated(file, "honest", 2))
    for name in SITES:
        said = world.must(name, "site", "receipts", "--folder", f"site-{name}", "--verify")
        assert "2 receipts hold" in said


def test_a_second_machine_with_the_same_key_is_refused(world: World) -> None:
    if down := [name for name in SITES if not world.is_online(name)]:
        world.up(*down)
    shutil.copytree(world.folder / "site-a", world.folder / "copy")
    second = world.fedface("stranger", "site", "up", "--folder", "copy")
    assert second.returncode not in (0, 2)
    assert "does another machine use this key" in second.stdout
    assert world.is_online("a")


def test_a_malicious_site_is_pruned_one_is_cut_off_and_one_comes_late(world: World) -> None:
    with (world.folder / "site-d" / "site.toml").open("a") as stream:
        stream.write(RED_TEAM)
    for name in SITES:
        assert world.sites[name].stop() == 0
        wait_for(lambda name=name: not world.is_online(name), f"site {name} is offline")
    world.up("a", "b", "d")
    file = world.write(
        run_yaml(
            "hostile",
            aggregator={"name": "ariba"},
            federation={"n_rounds": 3, "min_clients": 3, "join_timeout": 20},
        )
    )
    submitted = world.submitted(file)
    wait_for(lambda: "ROUND 1" in world.sites["b"].text(), "site b is at work in round 1")
    world.start("c")
    wait_for(lambda: "ROUND 2" in world.sites["b"].text(), "site b is at work in round 2")
    world.net.link("b", up=False)
    wait_for(lambda: submitted.child.poll() is not None, "the run ends", 1200)
    assert submitted.child.returncode == 0, submitted.text()
    rounds = world.events("hostile", "round")
    assert len(rounds) == 3
    who = [[client["client"] for client in event["clients"]] for event in rounds]
    assert who == [[0, 1, 3], [0, 2, 3], [0, 2, 3]], "c came late, b was cut off in round 2"
    assert "1" in rounds[1]["rejected"]
    assert [event["pruned"] for event in rounds] == [[3], [3], [3]], rounds
    world.net.link("b", up=True)
    text = (world.folder / "site-d" / "site.toml").read_text()
    (world.folder / "site-d" / "site.toml").write_text(text.replace(RED_TEAM, ""))
    wait_for(lambda: world.is_online("b"), "site b is back", 600)


def test_a_run_goes_on_after_kill_9_of_the_whole_server(world: World) -> None:
    down = [name for name in ("a", "b") if not world.is_online(name)]
    world.up(*down)
    content = run_yaml(
        "killed",
        federation={"n_clients": 2, "n_rounds": 3},
        deployment={"sites": ["a", "b"]},
        data={"partition": {"name": "by_identity"}},
    )
    submitted = world.submitted(world.write(content))
    wait_for(lambda: world.events("killed", "evaluation"), "the first round is complete")
    assert world.server is not None
    world.server.kill()
    world.server_up()
    wait_for(lambda: submitted.child.poll() is not None, "the run ends", 1200)
    assert submitted.child.returncode == 0, submitted.text()
    assert "continuing after its last round" in submitted.text()
    assert [event["round"] for event in world.events("killed", "round")] == [1, 2, 3]
    unbroken = world.write({**content, "name": "unbroken"})
    done = world.operator("submit", unbroken)
    assert done.returncode == 0, done.stdout
    assert equal(world.weights("killed", 3), world.weights("unbroken", 3))


EVIL = """
import sys
from pathlib import Path
import simulations.deploy.order as order
from flwr.cli.build import build_fab_from_files
from simulations.cli import app

marker = Path.cwd() / "code-of-the-bundle-was-run"
code = f"open({str(marker)!r}, 'a').write('!')\\napp = None\\n"
project = order._project()
for name in (order.SERVER_APP, order.CLIENT_APP):
    project = project.replace(name, "evil:app")
fab, _ = build_fab_from_files({"pyproject.toml": project.encode(), "evil.py": code.encode()})
order.bundle = lambda: fab
app(sys.argv[1:])
"""


def test_the_code_of_a_bundle_is_never_run(world: World) -> None:
    """Neither at the sites nor at the server, even if an operator submits it."""
    world.up(*[name for name in ("a", "b") if not world.is_online(name)])
    content = run_yaml(
        "evil", federation={"n_clients": 2, "n_rounds": 1}, deployment={"sites": ["a", "b"]}
    )
    (world.folder / "evil.py").write_text(EVIL)
    submit = ("submit", world.write(content), "--operator", "fed/operator")
    done = world.net.run("operator", sys.executable, "evil.py", *submit)
    assert done.returncode == 0, done.stdout
    assert len(world.events("evil", "round")[0]["clients"]) == 2, "the installed fedface answered"
    assert not (world.folder / "code-of-the-bundle-was-run").exists()


def test_a_run_that_fails_says_why_and_so_does_its_exit_code(world: World) -> None:
    nobody = run_yaml(
        "nobody",
        federation={"n_clients": 2, "join_timeout": 3},
        deployment={"sites": ["nobody", "here"]},
    )
    done = world.operator("submit", world.write(nobody))
    assert done.returncode == 1
    assert "failed: federation needs clients 0..1" in done.stdout, done.stdout
    taken = world.operator("submit", "killed.yaml")
    assert taken.returncode == 1
    assert "needed a free run folder" in taken.stdout


def test_a_site_that_is_expelled_is_out(world: World) -> None:
    assert world.operator("federation", "expel", "a").returncode == 0
    assert "site a:" not in world.operator("status").stdout


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces are drawn into a cache that the sites do not share."""
    for name in ("FEDFACE_OPERATOR", "FEDFACE_SERVER", "FEDFACE_SITE"):
        monkeypatch.delenv(name, raising=False)
    assert os.environ.get("PATH")
