"""Policy files: what is accepted is well-formed, and nothing else is."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.policy import SitePolicy, canonical, load_policy, parse_toml, sha256_of
from fedface.config import ConfigError

WHOLE: dict[str, Any] = {
    "version": 1,
    "weights": {"stem.weight": [4, 3, 3, 3], "stem.bias": [4], "scale": []},
    "buffers": {"norm.running_mean": [4]},
    "metrics": ["num-examples", "num-steps", "loss", "epsilon", "delta"],
    "messages": ["query", "train"],
    "max_norm": 3,
    "runs": ["a" * 64],
    "apps": ["0" * 64],
    "max_replies_per_run": 20,
    "error_characters": 80,
    "byte_budget": {"per_reply": 1000, "per_run": 2000, "in_all": 3000},
    "privacy": {"max_epsilon": 4.0, "max_delta": 1e-5, "stated_for": "site"},
}


def written(folder: Path, content: bytes, suffix: str = ".toml") -> Path:
    path = folder / f"policy{suffix}"
    path.write_bytes(content)
    return path


def test_toml_and_yaml_say_the_same(tmp_path):
    toml = load_policy(written(tmp_path, tomli_w.dumps(WHOLE).encode()))
    text = yaml.safe_dump(WHOLE).encode()
    assert load_policy(written(tmp_path, text, ".yaml")) == toml
    assert toml.weights["stem.weight"] == (4, 3, 3, 3) and toml.weights["scale"] == ()
    assert toml.explicit and toml.max_norm == 3.0


def test_an_empty_file_lets_no_buffers_out_and_names_no_weights(tmp_path):
    policy = load_policy(written(tmp_path, b""))
    assert policy == SitePolicy() and not policy.explicit and policy.buffers == {}
    named = policy.named({"a": (2,)}, {"b": (3,)})
    assert named.explicit and named.weights == {"a": (2,)} and named.buffers == {}


def test_the_digest_is_that_of_the_meaning():
    turned = dict(reversed(WHOLE.items()))
    turned["weights"] = dict(reversed(WHOLE["weights"].items()))
    assert SitePolicy.model_validate(WHOLE).digest == SitePolicy.model_validate(turned).digest
    other = {**WHOLE, "max_norm": 3.5}
    assert SitePolicy.model_validate(WHOLE).digest != SitePolicy.model_validate(other).digest


BAD: list[tuple[str, Any]] = [
    ("wieghts", {}),
    ("version", 2),
    ("version", True),
    ("version", 1.0),
    ("weights", "all"),
    ("weights", {"head": "any"}),
    ("weights", {"head": [1, -1]}),
    ("weights", {"head": [True]}),
    ("weights", {"head": [1.0]}),
    ("weights", {"head": ["4"]}),
    ("weights", {"head": [2**20, 2**21]}),
    ("weights", {"head": [1] * 9}),
    ("weights", {"": [1]}),
    ("weights", {"a b": [1]}),
    ("weights", {"x" * 201: [1]}),
    ("weights", {"a\n": [1]}),
    ("weights", ["stem"]),
    ("metrics", "loss"),
    ("metrics", ["loss", "loss"]),
    ("metrics", ["Loss"]),
    ("messages", ["train", "control"]),
    ("max_norm", 0),
    ("max_norm", -1.0),
    ("max_norm", float("inf")),
    ("max_norm", float("nan")),
    ("max_norm", "3"),
    ("max_norm", True),
    ("runs", ["A" * 64]),
    ("runs", ["a" * 63]),
    ("runs", ["a" * 64, "a" * 64]),
    ("byte_budget", {"per_run": 0}),
    ("byte_budget", {"per_run": 1.5}),
    ("byte_budget", {"per_day": 1}),
    ("max_replies_per_run", 0),
    ("error_characters", 100_000),
    ("privacy", {"max_epsilon": 1.0}),
    ("privacy", {"max_epsilon": 0, "max_delta": 0.1}),
    ("privacy", {"max_epsilon": 1, "max_delta": 1}),
    ("privacy", {"max_epsilon": 1, "max_delta": 0.1, "optional": True}),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_what_is_not_well_formed_is_refused_by_name(field, value, tmp_path):
    content = {**WHOLE, field: value}
    for text, suffix in ((tomli_w.dumps(content), ".toml"), (yaml.safe_dump(content), ".yaml")):
        path = written(tmp_path, text.encode(), suffix)
        with pytest.raises(ConfigError, match=field) as error:
            load_policy(path)
        assert str(error.value).startswith(str(path))


def test_a_shape_in_a_set_has_no_order(tmp_path):
    text = b"weights: {stem: !!set {4: null, 3: null}}"
    with pytest.raises(ConfigError, match="stem"):
        load_policy(written(tmp_path, text, ".yaml"))


def test_privacy_that_could_not_be_stated_is_refused():
    with pytest.raises(ValueError, match="metrics lacks epsilon"):
        SitePolicy.model_validate({**WHOLE, "metrics": ["loss", "delta"]})


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"version = 1\nversion = 1\n", ".toml"),
        (b"version: 1\nversion: 1\n", ".yaml"),
        (b"max_norm = " + b"9" * 5000, ".toml"),
        (b"max_norm: " + b"9" * 5000, ".yaml"),
        (b"a = " + b"[" * 5000, ".toml"),
        (b"a: " + b"[" * 5000, ".yaml"),
        (b"\xff\xfe", ".toml"),
        (b"\xff\xfe", ".yaml"),
        (b"- 1\n", ".yaml"),
        (b"", ".json"),
        (b"max_norm = 2026-11-21", ".toml"),
        (b"a: !!python/object/apply:os.system ['true']", ".yaml"),
    ],
)
def test_files_that_are_no_policy(content, suffix, tmp_path):
    with pytest.raises(ConfigError):
        load_policy(written(tmp_path, content, suffix))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_policy(tmp_path / "policy.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        load_policy(tmp_path / "folder.toml")


def is_well_formed(policy: SitePolicy) -> bool:
    """The rules once more, in the words of the type."""
    shapes = [
        (name, shape)
        for tensors in (policy.weights, policy.buffers)
        for name, shape in ({} if tensors == "backbone" else tensors).items()
    ]
    numbers = [policy.max_norm] if policy.max_norm is not None else []
    if policy.privacy is not None:
        numbers += [policy.privacy.max_epsilon, policy.privacy.max_delta]
    return (
        policy.version == 1
        and all(type(name) is str and name.isprintable() and " " not in name for name, _ in shapes)
        and all(type(shape) is tuple and len(shape) <= 8 for _, shape in shapes)
        and all(type(n) is int and n >= 0 for _, shape in shapes for n in shape)
        and all(type(n) is float and 0 < n < float("inf") for n in numbers)
        and set(policy.messages) <= {"query", "train", "evaluate"}
        and all(len(d) == 64 for d in (policy.runs or ()) + (policy.apps or ()))
        and 0 <= policy.error_characters <= 1000
    )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["backbone", "train", "loss", "a" * 64, ".inf", "1e3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*WHOLE, "other"]), VALUES, max_size=4), st.booleans())
def test_no_field_crashes_or_is_bent_into_shape(changes, whole):
    content = {**(WHOLE if whole else {}), **changes}
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), yaml.safe_dump(content, allow_unicode=True).encode(), ".yaml")
        try:
            policy = load_policy(path)
        except ConfigError:
            return
    assert is_well_formed(policy) and "other" not in changes
    assert SitePolicy.model_validate_json(policy.model_dump_json()) == policy
    for field, value in changes.items():
        if isinstance(value, str | int | float) and field not in ("weights", "buffers"):
            kept = getattr(policy, field)
            assert kept == value and isinstance(kept, bool) == isinstance(value, bool)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".toml", ".yaml"]))
def test_any_bytes_are_a_policy_or_refused(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        try:
            policy = load_policy(written(Path(folder), content, suffix))
        except ConfigError:
            return
    assert is_well_formed(policy)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_policy_is_a_policy_or_refused(data):
    text = tomli_w.dumps(WHOLE)
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.text(st.characters(max_codepoint=127), max_size=3))
    damaged = text[:at] + new + text[at + data.draw(st.integers(0, 3)) :]
    try:
        policy = parse_toml(damaged, "policy")
    except ConfigError:
        return
    assert is_well_formed(policy)


def test_canonical_json_knows_one_way():
    assert canonical({"b": [1, 2.5], "a": "ä"}) == b'{"a":"\\u00e4","b":[1,2.5]}'
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))
