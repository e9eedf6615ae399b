"""A person withdraws by the printed commands alone; the model is then that of a federation which
the person never joined.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import simulations.app
from clients.people import Register
from fedface.data.faces import Faces
from fedface.report.run_folder import RunFolder
from simulations.build import RunData, build_data, site_folder
from simulations.cli import app
from simulations.execution import run_single
from simulations.schema import RunConfig
from tests.simulations.tiny import tiny_config

pytestmark = pytest.mark.slow


def config_of(output: Path) -> RunConfig:
    """Two of four sites in each round, so that one comes late."""
    return tiny_config(
        output,
        attack={"malicious_share": 0.0},
        engine={"name": "in_process"},
        federation={"clients_per_round": 2, "n_rounds": 4},
        training={"epochs": 4},
    )


def trained(config: RunConfig, resume: bool = False) -> dict[str, bytes]:
    simulations.app._worker.cache_clear()  # as in a new process
    run_single(config, Console(quiet=True), "tiny", resume)
    last = RunFolder(config.folder).model(config.federation.n_rounds)
    return {name: value.numpy().tobytes() for name, value in last.items()}


def fedface(*command: str) -> Result:
    done = CliRunner().invoke(app, list(command))
    assert done.exit_code == 0, done.output
    return done


def first_round(config: RunConfig, site: int) -> int:
    events = RunFolder(config.folder).events("round")
    return min(e["round"] for e in events for c in e["clients"] if c["client"] == site)


def person_of(data: RunData, site: int) -> str:
    return data.train.names[data.train.identities[data.parts[site][0]]]


def as_told(config: RunConfig, site: int, person: str) -> tuple[str, dict[str, bytes]]:
    """Says `fedface site withdraw`, does what it answers; returns the answer and the model."""
    said = fedface("site", "withdraw", person, "--folder", str(site_folder(config, site))).output
    (command,) = re.findall(r"^  (fedface server rewind .*)$", said, re.MULTILINE)
    words = [w.replace(f"runs/{config.name}", str(config.folder)) for w in shlex.split(command)]
    fedface(*words[1:])
    assert "again with --resume" in said
    return said, trained(config, resume=True)


def never_joined(output: Path, site: int, person: str) -> dict[str, bytes]:
    """The model of the same federation where the person withdrew before it began."""
    config = config_of(output)
    register = Register(site_folder(config, site))
    register.bury(register.pseudonyms([person])[0])
    return trained(config)


def test_the_model_after_a_full_retrain_never_saw_the_person(tmp_path: Path) -> None:
    config = config_of(tmp_path / "one")
    before, data = trained(config), build_data(config)
    site = next(s for s in range(4) if first_round(config, s) == 1)
    person = person_of(data, site)
    write(tmp_path / "person", data.train, [person])
    write(tmp_path / "never-seen", data.test, data.test.names)
    said, after = as_told(config, site, person)
    assert "full retrain" in said
    assert after != before
    assert after == never_joined(tmp_path / "other", site, person)
    folders = ("--never-seen", str(tmp_path / "never-seen"))
    test = fedface(
        "site",
        *("membership", str(config.folder), "--person", str(tmp_path / "person" / person)),
        *folders,
    )
    assert f"among {data.test.n_identities} never-seen people" in test.output
    assert "verdict at 5 %: cannot tell" in test.output, "six strangers allow no p below 1 in 7"


def test_the_rounds_before_the_person_came_are_kept(tmp_path: Path) -> None:
    config = config_of(tmp_path / "one")
    before, data = trained(config), build_data(config)
    site = max(range(4), key=lambda s: first_round(config, s))
    first = first_round(config, site)
    assert first > 1, "two of four sites a round: another came first"
    kept = RunFolder(config.folder).model(first - 1)
    said, after = as_told(config, site, person_of(data, site))
    assert f"retrain from round {first} " in said and f"--to-round {first - 1}" in said
    again = RunFolder(config.folder).model(first - 1)
    assert all(np.array_equal(kept[name], again[name]) for name in kept)
    assert after != before


def write(folder: Path, faces: Faces, people: list[str] | tuple[str, ...]) -> None:
    for person in people:
        (folder / person).mkdir(parents=True)
        for index in np.flatnonzero(faces.identities == faces.names.index(person)):
            Image.fromarray(faces.images[index]).save(folder / person / f"{index}.png")
