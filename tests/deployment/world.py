"""The federation that the tests of this folder share: its server, its sites, its operators."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from clients.receipts import Receipts
from simulations.build import build_data
from simulations.gates import RECEIPTS
from simulations.schema import load_run
from tests.deployment.network import FEDFACE, SERVER_ADDRESS, Network, Process, missing, wait_for

WHY_NOT = missing()
"""Why there is no such federation here, or None."""

SITES = ("a", "b", "c", "d")
PORT = 8443
SERVER = f"{SERVER_ADDRESS}:{PORT}"
ALTERED = "import alteration\n"
ALTERATION = """
import sys
from types import ModuleType

NAME = "simulations.deploy.site_app"

def site_app(fab_hash):
    del sys.modules[NAME]
    import altered
    from simulations.deploy.site_app import site_app
    return site_app(fab_hash)

sys.modules[NAME] = ModuleType(NAME)
sys.modules[NAME].site_app = site_app
"""
"""Imports ``altered`` when Flower asks for the app; torch any earlier, and its token expires."""
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
    """The federation of these tests, and what its operators and engineers do."""

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

    def new_sites(self, *names: str) -> None:
        """Makes the folders of sites, all at once, with everyone's policy."""
        begun = []
        for name in names:
            command = ("site", "init", name, "--data", f"faces/{name}", "--server", SERVER)
            folder = ("--ca", "fed/ca.crt", "--folder", f"site-{name}")
            begun.append(self.net.start(name, f"init-{name}.log", *FEDFACE, *command, *folder))
        for name, process in zip(names, begun, strict=True):
            assert process.child.wait(300) == 0, process.text()
            assert "people" in process.text()
            assert "a training step for a try" in process.text()
            self.policy(name, "")

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

    def down(self) -> None:
        """Stops all sites."""
        for site in self.sites.values():
            assert site.stop() == 0, site.text()
        for name in self.sites:
            wait_for(lambda name=name: not self.is_online(name), f"site {name} is offline")
        self.sites.clear()

    def is_online(self, name: str) -> bool:
        return f"site {name}: online" in self.operator("status").stdout

    def submitted(self, file: str, *options: str) -> Process:
        return self.net.start(
            "operator",
            f"submit-{file}.log",
            *FEDFACE,
            *("submit", file, "--operator", "fed/operator", *options),
        )

    def ready(self, *names: str) -> None:
        """Starts those of the sites that are not there."""
        if down := [name for name in names if not self.is_online(name)]:
            self.up(*down)

    def end(self, submitted: Process, seconds: float = 1200) -> int:
        """Waits for the end of a run and returns the exit code of its ``submit``."""
        wait_for(lambda: submitted.child.poll() is not None, "the run ends", seconds)
        return int(submitted.child.returncode)

    def red_team(self, name: str) -> None:
        """Site ``name`` plays a malicious one from its next message on."""
        path = self.folder / f"site-{name}" / "site.toml"
        path.write_text(path.read_text() + RED_TEAM)

    def honest(self, name: str) -> None:
        """Site ``name`` is honest again, and runs the installed program."""
        path = self.folder / f"site-{name}" / "site.toml"
        path.write_text(path.read_text().replace(RED_TEAM, ""))
        program = self.folder / f"site-{name}" / "bin" / "flwr-clientapp"
        program.write_text(program.read_text().replace(ALTERED, ""))
        (self.folder / f"site-{name}" / "bin" / "altered.py").unlink(missing_ok=True)

    def alter(self, name: str, code: str) -> None:
        """Whoever runs site ``name`` has changed its program: ``code`` comes before the app."""
        program = self.folder / f"site-{name}" / "bin" / "flwr-clientapp"
        (program.parent / "alteration.py").write_text(ALTERATION)
        (program.parent / "altered.py").write_text(code)
        first, rest = program.read_text().split("\n", 1)
        program.write_text(f"{first}\n{ALTERED}{rest}")

    def policy(self, name: str, text: str, **tables: str) -> None:
        """Site ``name`` has everyone's policy with ``text`` on top and ``tables`` below."""
        below = "".join(f"\n[{table}]\n{content}\n" for table, content in tables.items())
        policy = text + "\n" + (self.folder / "policy.toml").read_text() + below
        (self.folder / f"site-{name}" / "policy.toml").write_text(policy)

    def receipts(self, name: str) -> list[dict[str, Any]]:
        """The bodies of a site's receipts."""
        return [dict(b) for b in Receipts(self.folder / f"site-{name}" / RECEIPTS).bodies()]

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
