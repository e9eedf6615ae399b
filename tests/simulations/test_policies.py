"""Site policies in whole runs, and a person who withdraws from one."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import simulations.app
from clients.people import Register
from clients.receipts import CHAIN, Receipts, verify
from fedface.config import ConfigError
from fedface.report.run_folder import RunFolder, RunFolderError
from simulations.build import build_data, site_folder
from simulations.cli import app
from simulations.execution import run_single
from simulations.policies import run_hash
from simulations.rewind import rewind
from simulations.schema import RunConfig
from tests.simulations.tiny import tiny_config

IN_PROCESS: dict[str, Any] = {"engine": {"name": "in_process"}}
OPEN: dict[str, Any] = {"buffers": "backbone"}


def config_of(output: Path, **overrides: Any) -> RunConfig:
    base: dict[str, Any] = {"attack": {"malicious_share": 0.0}, **IN_PROCESS}
    return tiny_config(output, **{**base, **overrides})


def run(config: RunConfig, resume: bool = False) -> list[dict[str, Any]]:
    run_single(config, Console(quiet=True), "tiny", resume)
    return RunFolder(config.folder).events("round")


def model_of(config: RunConfig) -> dict[str, Any]:
    folder = RunFolder(config.folder)
    return {name: value.numpy().tobytes() for name, value in folder.model(3).items()}


def test_the_gate_stands_where_the_policy_says_and_changes_no_figure(tmp_path):
    free = config_of(tmp_path / "free")
    strict = {**OPEN, "max_norm": 1e-3}
    gated = config_of(tmp_path / "gated", policy={"everywhere": OPEN, "sites": {0: None}})
    narrow = config_of(tmp_path / "narrow", policy={"sites": {1: strict}})
    run(free)
    assert all(not event["rejected"] for event in run(gated))
    assert model_of(gated) == model_of(free)
    assert not (site_folder(gated, 0) / CHAIN).exists(), "site 0 has no gate"
    assert verify(site_folder(gated, 2)).n == 4
    bodies = Receipts(site_folder(gated, 2)).bodies()
    assert [b["kind"] for b in bodies] == ["query", "train", "train", "train"]
    assert {b["run"] for b in bodies} == {run_hash(gated)} == {run_hash(free)}
    for event in run(narrow):
        assert list(event["rejected"]) == ["1"]
        assert "denied by the site's policy: an update longer" in event["rejected"]["1"]
    assert not (site_folder(narrow, 0) / CHAIN).exists()


def test_who_attacks_has_no_gate(tmp_path):
    config = config_of(
        tmp_path,
        attack={"malicious_share": 0.25},
        policy={"everywhere": OPEN},
        federation={"n_rounds": 2},
    )
    assert all(not event["rejected"] for event in run(config))
    with_receipts = [c for c in range(4) if (site_folder(config, c) / CHAIN).exists()]
    assert len(with_receipts) == 3


def test_policies_of_sites_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"policy.sites needs ids below n_clients=4, got \[4\]"):
        config_of(tmp_path, policy={"sites": {4: OPEN}})
    with pytest.raises(ConfigError, match="max_norms"):
        config_of(tmp_path, policy={"everywhere": {"max_norms": 1}})


def test_the_run_hash_is_that_of_what_is_asked(tmp_path):
    config = config_of(tmp_path)
    assert run_hash(config) == run_hash(config_of(tmp_path / "x", policy={"everywhere": OPEN}))
    assert run_hash(config) != run_hash(config_of(tmp_path, federation={"n_rounds": 4}))
    assert run_hash(config) != run_hash(config_of(tmp_path, training={"epochs": 2}))


def test_a_person_withdraws_and_the_run_goes_on_without(tmp_path):
    config = config_of(tmp_path)
    run(config)
    data = build_data(config)
    person = data.train.names[data.train.identities[data.parts[1][0]]]
    folder = site_folder(config, 1)
    runner = CliRunner()
    said = runner.invoke(app, ["site", "withdraw", person, "--folder", str(folder)])
    assert said.exit_code == 0, said.output
    assert (
        f"run {config.name}: full retrain (the person was in 3 of its rounds, 1 to 3)"
        in said.output
    )
    assert "--to-round 0" in said.output and "2 heads" in said.output
    (pseudonym,) = Register(folder).pseudonyms([person])
    rounds = RunFolder(config.folder).events("round")
    before = {event["round"]: event["clients"][1]["n_examples"] for event in rounds}
    again = runner.invoke(app, ["server", "rewind", str(config.folder), "--to-round", "0"])
    assert again.exit_code == 0, again.output
    simulations.app._worker.cache_clear()  # as in a new process
    for event in run(config, resume=True):
        assert event["clients"][1]["n_examples"] < before[event["round"]]
    lineage = Register(folder).rounds_of(pseudonym)
    assert lineage == {config.name: (1, 2, 3)}, "what was stays written; nothing was added"
    assert len(list(folder.glob("rosters/*.json"))) == 2


def test_rewinding_forgets_what_came_after_and_no_more(tmp_path):
    config = config_of(tmp_path)
    run(config)
    whole = model_of(config)
    folder = rewind(config.folder, 1)
    assert folder.checkpoint_rounds() == [1] and folder.result() is None
    assert [event["round"] for event in folder.events("round")] == [1]
    run(config, resume=True)
    assert set(model_of(config)) == set(whole)
    with pytest.raises(RunFolderError, match=r"needed a round in 0..3"):
        rewind(config.folder, 7)
    with pytest.raises(RunFolderError, match="found no config"):
        rewind(tmp_path / "nothing", 0)


def test_receipts_on_the_command_line(tmp_path):
    receipts = Receipts(tmp_path)
    for number in range(3):
        receipts.append(
            lambda _, n=number: (
                {"event": "denied", "kind": "train", "run": "a" * 64, "round": n}
                | {"rule": "no", "detail": "head.weight"}
            )
        )
    runner = CliRunner()
    shown = runner.invoke(app, ["site", "receipts", "--folder", str(tmp_path)])
    assert shown.exit_code == 0 and shown.output.count("head.weight") == 3
    held = runner.invoke(app, ["site", "receipts", "--verify", "--folder", str(tmp_path)])
    assert held.exit_code == 0 and "3 receipts hold" in held.output
    lines = (tmp_path / CHAIN).read_bytes().splitlines(keepends=True)
    (tmp_path / CHAIN).write_bytes(lines[0] + lines[2] + lines[1])
    broken = runner.invoke(app, ["site", "receipts", "--verify", "--folder", str(tmp_path)])
    assert broken.exit_code == 1 and f"{CHAIN}:2: needed receipt 2" in broken.output
