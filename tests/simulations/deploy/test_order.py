"""What an operator submits: round trip, refusals, and the thin bundle."""

import tomllib
import zipfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedface.config import ConfigError
from simulations.deploy.order import DEFAULTS, Order, bundle, deployment_of, read_order
from simulations.deploy.plan import Deployment
from simulations.schema import RunConfig
from tests.simulations.tiny import N_CLIENTS, tiny_config

ROOT = Path(__file__).parents[3]


def deployed(tmp_path: Path, **changes: Any) -> RunConfig:
    """The tiny run, fit for real sites."""
    config = tiny_config(tmp_path, deployment={"sites": [f"s{i}" for i in range(N_CLIENTS)]})
    return config.model_copy(update={"attack": None, **changes})


def context(values: dict[str, Any]) -> Context:
    return Context(1, 1, {}, RecordDict(), values)


@pytest.mark.parametrize("resume", [False, True])
def test_an_order_arrives_as_it_was_sent(tmp_path: Path, resume: bool) -> None:
    order = Order(deployed(tmp_path), resume)
    assert read_order(context(order.run_config())) == order


def test_a_run_for_another_version_is_refused(tmp_path: Path) -> None:
    values = Order(deployed(tmp_path)).run_config()
    with pytest.raises(ConfigError, match=f"needed fedface {version('fedface')}"):
        read_order(context({**values, "version": "9.9"}))
    with pytest.raises(ConfigError, match="found None"):
        read_order(context({}))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "[" * 100_000, "x" * 1_000_001, 7])
def test_what_is_no_run_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="run"):
        read_order(context({"config": text, "resume": False, "version": version("fedface")}))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_crashes_the_reader(value: Any) -> None:
    with pytest.raises(ConfigError):
        read_order(context({"config": value, "resume": value, "version": version("fedface")}))


def test_real_sites_do_no_attacks_and_no_comparisons(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match="deployment: needed for real sites"):
        deployment_of(config)
    four = tiny_config(tmp_path, deployment={"sites": ["a", "b", "c", "d"]})
    with pytest.raises(ConfigError, match="attack: needs to be null"):
        deployment_of(four)


def test_there_are_as_many_sites_as_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deployment\.sites needs federation\.n_clients=4 names"):
        tiny_config(tmp_path, deployment={"sites": ["a"]})


@pytest.mark.parametrize("sites", [[], ["a", "a"], ["A"], ["../x"], ["a b"], [""], ["-a"]])
def test_names_are_plain_and_differ(sites: list[str]) -> None:
    with pytest.raises(ValueError, match="sites"):
        Deployment(sites=tuple(sites))


def test_the_bundle_holds_no_code_and_is_always_the_same() -> None:
    made = bundle()
    assert made == bundle()
    with zipfile.ZipFile(BytesIO(made)) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "pyproject.toml"]


def test_flwr_build_would_make_the_same_apps() -> None:
    with zipfile.ZipFile(BytesIO(bundle())) as archive:
        ours = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    theirs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert ours["components"] == theirs["components"]
    assert ours["publisher"] == theirs["publisher"]
    assert ours["config"] == theirs["config"] == DEFAULTS
