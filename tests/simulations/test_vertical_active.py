"""Whole vertical runs whose active party is a client: the same bits as at the server."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedface.report.run_folder import RunFolder
from simulations import vertical_app, vertical_server
from simulations.server import RunFailed
from tests.simulations.test_vertical_execution import (
    equal,
    facts,
    faulty,
    fresh_process,
    lasting,
    ran,
    sends,
)
from tests.simulations.tiny_vertical import tiny_vertical

__all__ = ["fresh_process"]

CLIENT = {"active": {"at": "client"}}


def whole(left: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the last round by name, whoever wrote them down."""
    last = max(int(name.split(":")[0][-18:-12]) for name in left)
    ours = {k: v for k, v in left.items() if f"round-{last:06d}" in k}
    named = {}
    for key, value in ours.items():
        file, name = key.split(":")
        if name.startswith("aligned."):
            continue
        is_active = file.startswith("checkpoints") or name.startswith("active.")
        named[("active" if is_active else file, name.removeprefix("active."))] = value
    return {" ".join(k): v for k, v in named.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "training": {"n_rounds": 1, "final_epochs": 2, "pretraining": {"epochs": 1}},
            "data": {"split": {"public": 3}},
        },
        {
            "federation": {"drop_out": 0.4},
            "training": {"n_rounds": 2, "final_epochs": 1, "final_release": False},
        },
    ],
)
def test_the_same_numbers_wherever_the_active_party_is(
    tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ran(tiny_vertical(tmp_path / "server", **overrides))
    vertical_app._worker.cache_clear()
    given = []
    original = vertical_server.VerticalServer.__init__

    def spied(self: Any, config: Any, side: Any, *rest: Any) -> None:
        given.append(side)
        original(self, config, side, *rest)

    monkeypatch.setattr(vertical_server.VerticalServer, "__init__", spied)
    client = ran(tiny_vertical(tmp_path / "client", **{**overrides, **CLIENT}))
    assert given == [None]  # no label, view or model at the server
    assert facts(client.path) == facts(server.path)
    assert equal(whole(lasting(client.path)), whole(lasting(server.path)))
    assert all(not name.startswith("checkpoints") for name in lasting(client.path))
    assert (client.result() or {})["active_at"] == "client"


def test_the_active_party_as_the_only_client(tmp_path: Path) -> None:
    alone = {"parties": {"passive": []}}
    server = ran(tiny_vertical(tmp_path / "server", **alone))
    vertical_app._worker.cache_clear()
    client = ran(tiny_vertical(tmp_path / "client", **alone, **CLIENT))
    assert facts(client.path) == facts(server.path)


def test_a_hostile_passive_party_is_refused_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at in ("server", "client"):
        vertical_app._worker.cache_clear()
        config = tiny_vertical(
            tmp_path / at,
            active={"at": at},
            training={"n_rounds": 1},
            evaluation={"every": None},
        )
        made = faulty(config, 1, sends(lambda z: z * np.float32(np.nan)))
        with monkeypatch.context() as patch:
            patch.setattr(vertical_app, "vertical_client_app", lambda own, made=made: made)
            found.append(facts(ran(config).path))
    assert found[0] == found[1]
    assert "party bottom_left needs to send finite" in str(found[1][1]["refused"])


def failing(honest: ClientApp, calls: list[str], kind: str, after: int) -> ClientApp:
    """The run's app, whose active party fails at its message number ``after`` of type ``kind``."""

    class Failing(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            is_active = int(context.node_config["partition-id"]) == 2
            if is_active and message.metadata.message_type == kind:
                calls.append(kind)
                if len(calls) == after:
                    return Message(Error(0, "the disk is full"), reply_to=message)
            return honest(message, context)

    return Failing()


@pytest.mark.parametrize(("kind", "after"), [("train.steps", 8), ("train.save", 2)])
def test_without_the_active_party_the_round_ends_and_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: int
) -> None:
    untouched = ran(tiny_vertical(tmp_path / "whole", **CLIENT))
    vertical_app._worker.cache_clear()
    config = tiny_vertical(tmp_path / "failed", **CLIENT)
    made = failing(vertical_app.vertical_client_app(config), [], kind, after)
    with monkeypatch.context() as patch:
        patch.setattr(vertical_app, "vertical_client_app", lambda own: made)
        with pytest.raises(
            RunFailed, match="round 2: party active failed: the disk is full; nobody can train"
        ):
            ran(config)
    assert RunFolder(config.folder).checkpoint_rounds() == [1]
    vertical_app._worker.cache_clear()
    ran(config, resume=True)
    assert facts(config.folder) == facts(untouched.path)
    assert equal(lasting(config.folder), lasting(untouched.path))


def test_each_kind_of_party_refuses_the_messages_of_the_other(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path, **CLIENT)
    source = config.model_dump_json()
    for number, kind, name in ((0, "train.steps", "top_right"), (2, "train.embed", "active")):
        with pytest.raises(ValueError, match=f"party {name} needs messages for its own kind"):
            vertical_app._act(vertical_app.party(source, number), kind)
    with pytest.raises(ValueError, match=r"party needs to be in 0\.\.1, got 2"):
        vertical_app.party(tiny_vertical(tmp_path).model_dump_json(), 2)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    import yaml

    config = tiny_vertical(tmp_path)
    folder = ran(config)
    content = yaml.safe_load((folder.path / "config.yaml").read_text())
    del content["active"]["at"]
    (folder.path / "config.yaml").write_text(yaml.safe_dump(content))
    ran(config, resume=True)


@pytest.mark.slow
def test_every_engine_gives_the_same_bits(tmp_path: Path) -> None:
    left = {}
    for name, engine in {
        "in_process": {"name": "in_process"},
        "resident": {"name": "resident", "num_cpus": 2},
        "flower": {"name": "flower", "num_cpus": 2},
    }.items():
        vertical_app._worker.cache_clear()
        folder = ran(tiny_vertical(tmp_path / name, engine=engine, **CLIENT))
        left[name] = lasting(folder.path)
        assert facts(folder.path) == facts(tmp_path / "in_process" / "tiny")
    assert all(equal(found, left["in_process"]) for found in left.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "kind"),
    [pytest.param(2, "train.steps", marks=pytest.mark.ci), (2, "train.save"), (0, "train")],
)
def test_a_killed_worker_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: int, kind: str
) -> None:
    """Kill -9 after a party's work: the message is answered anew, from what the party was."""
    quiet = ran(tiny_vertical(tmp_path / "quiet", **CLIENT))
    engine = {"name": "resident", "num_cpus": 2}
    config = tiny_vertical(tmp_path / "killed", engine=engine, **CLIENT)
    flag = tmp_path / "flag"
    made = dying(vertical_app.vertical_client_app(config), node, kind, flag)
    monkeypatch.setattr(vertical_app, "vertical_client_app", lambda own: made)
    folder = ran(config)
    assert flag.exists(), "nobody was killed"
    assert facts(folder.path) == facts(quiet.path)
    assert equal(lasting(folder.path), lasting(quiet.path))


def dying(honest: ClientApp, node: int, kind: str, flag: Path) -> ClientApp:
    """The run's app; in round 2 a node's answer to a type of message ends its process, once."""

    class Dying(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = honest(message, context)
            if (
                int(context.node_config["partition-id"]) == node
                and message.metadata.message_type.startswith(kind)
                and int(message.content.config_records["config"]["server-round"]) == 2
                and not flag.exists()
            ):
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return reply

    return Dying()
