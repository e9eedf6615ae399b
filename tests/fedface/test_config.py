from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from fedface.config import Config, ConfigError, load_config, parse_config, read_yaml


class Median(Config):
    name: Literal["median"] = "median"


class Krum(Config):
    name: Literal["krum"] = "krum"
    n_byzantine: NonNegativeInt


class Run(Config):
    rounds: PositiveInt = 3
    aggregator: Annotated[Median | Krum, Field(discriminator="name")] = Median()
    rate: float = 0.1


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode(encoding))
        return path

    return written


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, Run)
    return str(caught.value)


def test_a_file_becomes_a_typed_object(write):
    path = write("rounds: 5\naggregator: {name: krum, n_byzantine: 1}\n")
    assert load_config(path, Run) == Run(rounds=5, aggregator=Krum(n_byzantine=1))


def test_what_is_loaded_cannot_be_changed(write):
    run = load_config(write("rounds: 5\n"), Run)
    with pytest.raises(ValidationError):
        run.rounds = 6
    assert run.rounds == 5


@pytest.mark.parametrize(
    ("text", "field", "need", "found"),
    [
        ("rounds: 0", "rounds", "greater than 0", "0"),
        ("rounds: many", "rounds", "valid integer", "'many'"),
        ("rate: .inf", "rate", "finite", "inf"),
        ("rate: .nan", "rate", "finite", "nan"),
        ("round: 3", "round", "not permitted", "3"),
        ("aggregator: {name: krum}", "aggregator.krum.n_byzantine", "required", "{'name': 'krum'}"),
        ("aggregator: {name: krum, n_byzantine: -1}", "aggregator.krum.n_byzantine", ">=0", "-1"),
        ("aggregator: {name: median, k: 1}", "aggregator.median.k", "not permitted", "1"),
        ("aggregator: {name: magic}", "aggregator", "'median', 'krum'", "{'name': 'magic'}"),
    ],
)
def test_an_error_names_file_field_need_and_finding(write, text, field, need, found):
    path = write(text)
    message = error_of(path)
    assert message.startswith(f"{path}: {field}: ")
    assert need.replace(">=0", "greater than or equal to 0") in message
    assert message.endswith(f"found {found}")


def test_every_problem_gets_its_own_line(write):
    lines = error_of(write("rounds: 0\nrate: fast\nspeed: 3\n")).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["rounds", "rate", "speed"]


def test_a_long_finding_is_cut():
    with pytest.raises(ConfigError) as caught:
        parse_config({"rounds": "x" * 10_000}, Run, "here")
    assert len(str(caught.value)) < 300


def test_defaults_are_checked_too():
    class Wrong(Config):
        rounds: PositiveInt = 0

    with pytest.raises(ValidationError):
        Wrong()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rounds: 1\nrounds: 2\n", "key 'rounds' stands twice"),
        ("aggregator:\n  name: krum\n  n_byzantine: 1\n  name: median\n", "key 'name'"),
        ("list: [{a: 1, a: 1}]\n", "key 'a' stands twice"),
        ("rounds: [\n", "needed YAML"),
        ("rounds: 2026-13-45\n", "needed YAML, found: month"),
        ("? {a: 1}\n: 3\n", "unhashable key"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("", "needed a mapping of fields, found NoneType"),
        ("- 1\n- 2\n", "needed a mapping of fields, found list"),
    ],
)
def test_what_is_no_mapping_of_yaml_is_refused(write, text, reason):
    path = write(text)
    message = error_of(path)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_the_line_of_a_repeated_key_is_told(write):
    assert "line 3" in error_of(write("rounds: 1\nrate: 2\nrounds: 1\n"))


def test_a_merged_mapping_may_be_overridden(write):
    path = write("a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\nd: *b\n")
    assert read_yaml(path) == {
        "a": {"x": 1, "y": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 3, "y": 2},
        "d": {"x": 1, "y": 2},
    }


def test_a_file_that_cannot_be_read_is_named(tmp_path, write):
    assert error_of(tmp_path / "absent.yaml") == (
        f"{tmp_path}/absent.yaml: needed a readable file, found: No such file or directory"
    )
    assert "Is a directory" in error_of(tmp_path)
    assert error_of(write("name: é", "latin-1")).endswith("needed UTF-8 text, found other bytes")


def test_utf8_is_read_whatever_the_locale(write):
    assert read_yaml(write("name: Zürich Łódź\n")) == {"name": "Zürich Łódź"}


def test_environment_variables_are_expanded_in_texts_at_every_depth(write, monkeypatch):
    monkeypatch.setenv("FACES", "/faces")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("ABSENT", raising=False)
    path = write(
        "a: ${FACES}/lfw\n"
        "b: [{c: 'x${ABSENT:-y}z'}, 3, null]\n"
        "d: ${EMPTY:-filled}\n"
        "e: ${ABSENT:-}\n"
        "f: ${FACES}${FACES:-other}\n"
        "g: $FACES {FACES}\n"
    )
    assert read_yaml(path) == {
        "a": "/faces/lfw",
        "b": [{"c": "xyz"}, 3, None],
        "d": "filled",
        "e": "",
        "f": "/faces/faces",
        "g": "$FACES {FACES}",
    }


def test_a_variable_that_is_not_set_is_named_with_its_field(write, monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    path = write("data: {parts: [{folder: '${ABSENT}/x'}]}\n")
    assert error_of(path) == (
        f"{path}: data.parts.folder: needed the environment variable ABSENT, found none"
    )
