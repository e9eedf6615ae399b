"""The commands of real sites, as far as they need no network: files, messages, exit codes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from simulations.cli import app
from simulations.deploy.settings import SiteFolder
from tests.simulations.tiny import tiny_content


def fedface(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a federation and three people, nothing of it in the environment."""
    for name in ("FEDFACE_OPERATOR", "FEDFACE_SERVER", "FEDFACE_SITE", "FEDFACE_CACHE"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    said = fedface("federation", "init", "fed", "--host", "localhost")
    assert said.exit_code == 0, said.output
    rng = np.random.default_rng(0)
    for person in ("ada", "bob", "eve"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "people" / person / f"{i}.png")
    return tmp_path


def new_site(*options: object) -> Result:
    place = ("--data", "people", "--server", "localhost:1", "--ca", "fed/ca.crt")
    return fedface("site", "init", "clinic", *place, *options)


def test_a_federation_says_where_its_parts_go(world: Path) -> None:
    said = fedface("federation", "init", "other", "--host", "localhost")
    assert said.exit_code == 0
    for part in ("other/authority", "other/server", "other/operator", "SHA-256"):
        assert part in said.output
    again = fedface("federation", "init", "other", "--host", "localhost")
    assert again.exit_code == 2
    assert "needed a free folder" in again.output


def test_operators_and_server_certificates_can_be_made_anew(world: Path) -> None:
    assert fedface("federation", "operator", "fed", "second").exit_code == 0
    assert (world / "fed" / "operator-second" / "operator.toml").is_file()
    assert fedface("federation", "operator", "fed", "Not plain").exit_code == 2
    said = fedface("federation", "renew", "fed", "--host", "new.example")
    assert said.exit_code == 0
    assert "new.example" in said.output


def test_a_site_is_made_and_looked_at(world: Path) -> None:
    said = new_site()
    assert said.exit_code == 0, said.output
    assert "3 people, 6 images of 16 x 16, 2 to 2 each; left out: 0" in said.output
    assert "a training step for a try: loss" in said.output
    assert "clinic/keys/clinic.pub" in said.output
    again = fedface("site", "check", "--folder", "clinic")
    assert again.exit_code == 0
    assert "does not answer yet" in again.output
    assert new_site().exit_code == 2


def test_a_step_for_a_try_can_be_that_of_a_run(world: Path) -> None:
    (world / "run.yaml").write_text(yaml.safe_dump(tiny_content(world)))
    assert new_site("--config", "run.yaml").exit_code == 0


def test_a_person_who_withdraws_is_deleted_from_images_and_cache(world: Path) -> None:
    assert new_site().exit_code == 0
    assert list((world / "clinic" / "cache").glob("*/entry.json"))
    said = fedface("site", "withdraw", "ada", "--folder", "clinic")
    assert said.exit_code == 0, said.output
    assert "deleted: 2 images, 1 cached data sets" in said.output
    assert not list((world / "people" / "ada").glob("*"))
    assert SiteFolder(world / "clinic").settings.faces_root == world / "people"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("server", "up", "--folder", "none"), "server.toml: needed a readable file"),
        (("site", "up", "--folder", "none"), "site.toml: needed a readable file"),
        (("status", "--operator", "none"), "operator.toml: needed a readable file"),
        (("submit", "none.yaml", "--operator", "fed/operator"), "none.yaml: needed a readable"),
        (("federation", "admit", "a", "none.pub", "--operator", "fed/operator"), "none.pub"),
        (("federation", "operator", "none", "x"), "server.toml: needed a readable file"),
    ],
)
def test_what_is_missing_is_named_with_code_two(
    world: Path, arguments: tuple[str, ...], message: str
) -> None:
    said = fedface(*arguments)
    assert said.exit_code == 2
    assert message in said.output


def test_a_server_that_is_away_is_code_one(world: Path) -> None:
    text = (world / "fed" / "operator" / "operator.toml").read_text()
    (world / "fed" / "operator" / "operator.toml").write_text(text.replace("8443", "1"))
    said = fedface("status", "--operator", "fed/operator")
    assert said.exit_code == 1
    assert "the server does not answer" in said.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "deployment: needed"), ({"deployment": {"sites": list("abcd")}}, "attack: needs")],
)
def test_a_run_that_real_sites_cannot_do_is_not_submitted(
    world: Path, changes: dict[str, Any], message: str
) -> None:
    (world / "run.yaml").write_text(yaml.safe_dump({**tiny_content(world), **changes}))
    said = fedface("submit", "run.yaml", "--operator", "fed/operator")
    assert said.exit_code == 2
    assert message in said.output


def test_keys_that_others_can_read_are_refused(world: Path) -> None:
    assert new_site().exit_code == 0
    (world / "clinic" / "keys" / "clinic").chmod(0o644)
    (world / "fed" / "server" / "tls" / "server.key").chmod(0o640)
    for command in (
        ("site", "up", "--folder", "clinic"),
        ("server", "up", "--folder", "fed/server"),
    ):
        said = fedface(*command)
        assert said.exit_code == 2
        assert "needed mode 600" in said.output
