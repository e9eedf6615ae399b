"""The server's and the sites' apps of a deployment, with Flower's grid replaced by calls.

``tests/deployment`` does the same with real processes, keys and TLS.
"""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from PIL import Image
from safetensors.torch import load_file

from clients.receipts import Receipts
from fedface.config import ConfigError
from fedface.report.run_folder import RunFolder, RunFolderError
from simulations.build import build_data
from simulations.deploy import server_app
from simulations.deploy.order import Order
from simulations.deploy.server_app import serve
from simulations.deploy.settings import ServerFolder
from simulations.deploy.site import new_site
from simulations.deploy.site_app import site_app
from simulations.deploy.site_policy import policy_text
from simulations.engine import InProcessEngine
from simulations.execution import run_single
from simulations.schema import RunConfig
from simulations.server import RunFailed
from tests.simulations.deploy.test_order import deployed

pytestmark = pytest.mark.usefixtures("flower_identity")


class Flower:
    """Flower's grid; each site is a call of its app with its folder in the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, order: Order, folders: list[Path]) -> None:
        self.patch = monkeypatch
        self.values = order.run_config()
        self.folders = folders
        self.away: set[int] = set()
        self.contexts: dict[int, RecordDict] = {}
        self.waiting: dict[str, Message] = {}
        self.kill_in_round: int | None = None

    def get_nodes(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=f"s{i}", node_id=100 + i)
            for i in range(len(self.folders))
            if i not in self.away
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.waiting[message.metadata.message_id] = message
            if self.kill_in_round == message.content["config"]["server-round"]:
                raise KeyboardInterrupt
        return [message.metadata.message_id]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        return [self.answer(self.waiting.pop(i)) for i in list(ids)[:1] if i in self.waiting]

    def answer(self, message: Message) -> Message:
        site = message.metadata.dst_node_id - 100
        self.patch.setenv("FEDFACE_SITE", str(self.folders[site]))
        state = self.contexts.setdefault(site, RecordDict())
        context = Context(7, 100 + site, {}, state, dict(self.values))
        return site_app("0" * 64)(message, context)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """The tiny run for real sites, without waiting."""
    made = deployed(tmp_path / "simulated", engine=InProcessEngine())
    assert made.deployment is not None
    plan = made.deployment.model_copy(update={"poll_seconds": 1e-9})
    federation = made.federation.model_copy(update={"join_timeout": 0.3, "timeout": 60.0})
    return made.model_copy(update={"deployment": plan, "federation": federation})


@pytest.fixture
def sites(tmp_path: Path, config: RunConfig) -> list[Path]:
    """The folders of four sites with the people whom the simulation deals to them."""
    data = build_data(config)
    (tmp_path / "ca").mkdir()
    from simulations.deploy.authority import found_authority

    found_authority(tmp_path / "ca", "test", 5)
    folders = []
    for i, part in enumerate(data.parts):
        for index in part:
            person = tmp_path / f"people{i}" / data.train.names[data.train.identities[index]]
            person.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.train.images[index]).save(person / f"{index:05d}.png")
        site = new_site(
            tmp_path / f"site{i}",
            f"s{i}",
            tmp_path / f"people{i}",
            "localhost:1",
            tmp_path / "ca" / "ca.crt",
            None,
            9094,
        )
        site.settings.policy.write_text(policy_text(config))
        folders.append(site.path)
    return folders


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "server")


def final(folder: Path, last_round: int = 3) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"round-{last_round:06d}.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def do(flower: Flower, order: Order, folder: ServerFolder) -> None:
    folder.path.mkdir(exist_ok=True)
    serve(flower, order, folder)  # type: ignore[arg-type]


def test_real_sites_give_the_weights_of_the_simulation_and_receipts(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    from rich.console import Console

    order = Order(config)
    do(Flower(monkeypatch, order, sites), order, folder)
    run_single(config, Console(quiet=True), "simulated")
    assert equal(final(folder.runs / "tiny"), final(config.folder))
    result = RunFolder(folder.runs / "tiny").result()
    assert result is not None
    assert result["sites"] == ["s0", "s1", "s2", "s3"]
    for site in sites:
        gone = [body["event"] for body in Receipts(site / "receipts").bodies()]
        assert gone == ["released"] * 3


def test_a_killed_run_goes_on_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    order = Order(config)
    flower = Flower(monkeypatch, order, sites)
    flower.kill_in_round = 3
    with pytest.raises(KeyboardInterrupt):
        do(flower, order, folder)
    assert RunFolder(folder.runs / "tiny").checkpoint_rounds() == [1, 2]
    again = Order(config, resume=True)
    do(Flower(monkeypatch, again, sites), again, folder)
    whole = Order(config.model_copy(update={"name": "whole"}))
    for site in sites:
        text = (site / "policy.toml").read_text()
        kept = [line for line in text.splitlines(True) if not line.startswith("runs =")]
        (site / "policy.toml").write_text("".join(kept))
    do(Flower(monkeypatch, whole, sites), whole, folder)
    assert equal(final(folder.runs / "tiny"), final(folder.runs / "whole"))


def test_a_site_that_is_away_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    federation = config.federation.model_copy(update={"min_clients": 3})
    order = Order(config.model_copy(update={"federation": federation}))
    for site in sites:
        (site / "policy.toml").write_text(policy_text(order.config))
    flower = Flower(monkeypatch, order, sites)
    flower.away = {1}
    do(flower, order, folder)
    rounds = RunFolder(folder.runs / "tiny").events("round")
    assert [[c["client"] for c in event["clients"]] for event in rounds] == [[0, 2, 3]] * 3
    assert all("1" in event["rejected"] for event in rounds)


def test_a_closed_policy_lets_nothing_out_and_the_run_fails(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    for site in sites:
        (site / "policy.toml").write_text("version = 1\n[weights]\n")
    order = Order(config)
    with pytest.raises(RunFailed, match=r"3 rounds in a row|no round had 2 valid replies"):
        do(Flower(monkeypatch, order, sites), order, folder)
    assert RunFolder(folder.runs / "tiny").result() is None
    (event, *_) = RunFolder(folder.runs / "tiny").events("round")
    assert all("denied by the site's policy" in why for why in event["rejected"].values())


def test_a_site_takes_part_only_in_runs_that_name_it(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    text = (sites[2] / "site.toml").read_text()
    (sites[2] / "site.toml").write_text(text.replace('name = "s2"', 'name = "other"', 1))
    order = Order(config)
    do(Flower(monkeypatch, order, sites), order, folder)
    rounds = RunFolder(folder.runs / "tiny").events("round")
    assert all(list(event["rejected"]) == ["2"] for event in rounds)


def test_a_run_folder_is_never_overwritten_nor_shared(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, sites: list[Path], folder: ServerFolder
) -> None:
    order = Order(config)
    do(Flower(monkeypatch, order, sites), order, folder)
    with pytest.raises(RunFolderError, match="needed a free run folder"):
        do(Flower(monkeypatch, order, sites), order, folder)
    other = Order(config.model_copy(update={"seed": 1}), resume=True)
    with pytest.raises(RunFolderError, match="found other values in: seed"):
        do(Flower(monkeypatch, other, sites), other, folder)
    do(Flower(monkeypatch, order, []), Order(config, resume=True), folder)  # complete already
    monkeypatch.setattr(server_app, "PATIENCE", 0.5)
    with (
        RunFolder(folder.runs / "tiny").alone(),
        pytest.raises(RunFolderError, match="found a process at work"),
    ):
        do(Flower(monkeypatch, order, sites), order, folder)


def test_a_server_without_the_runs_faces_says_so(
    config: RunConfig, folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = config.data.split.model_copy(update={"test": 1000})
    data = config.data.model_copy(update={"split": split})
    order = Order(config.model_copy(update={"data": data}))
    with pytest.raises(ConfigError, match="data: split needs n_identities"):
        do(Flower(monkeypatch, order, []), order, folder)
    assert not RunFolder(folder.runs / "tiny").exists()
