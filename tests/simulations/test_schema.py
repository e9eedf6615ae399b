import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedface.config import ConfigError, parse_config
from simulations.schema import RunConfig, expand, load_run, merge, variants
from tests.simulations.tiny import COMPARISON, tiny_config, tiny_content


def written(folder: Path, content: dict[str, Any], name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def with_field(content: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """``content`` with ``value`` at the dotted path ``field``."""
    changed = copy.deepcopy(content)
    *parents, last = field.split(".")
    inner = changed
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return changed


def test_the_yaml_of_a_resolved_run_is_the_same_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert load_run(written(tmp_path, config.to_yaml_dict())) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_output_option_replaces_the_output_of_the_file(tmp_path: Path) -> None:
    config = load_run(written(tmp_path, tiny_content(tmp_path)), tmp_path / "elsewhere")
    assert config.folder == tmp_path / "elsewhere" / "tiny"


@pytest.mark.parametrize(
    ("field", "value", "where", "need", "found"),
    [
        ("name", "a/b", "name", "match pattern", "'a/b'"),
        ("name", "../x", "name", "match pattern", "'../x'"),
        ("name", "x\n", "name", "match pattern", "'x\\n'"),
        ("seed", -1, "seed", "greater than or equal to 0", "-1"),
        ("sead", 1, "sead", "Extra inputs are not permitted", "1"),
        ("federation.n_clients", 0, "federation.n_clients", "greater than 0", "0"),
        ("federation.n_rounds", 2.5, "federation.n_rounds", "valid integer", "2.5"),
        ("federation.clients_per_round", 5, "federation", "<= n_clients=4, got 5", "5"),
        ("federation.min_valid_replies", 5, "federation", "<= 4 clients a round, got 5", "5"),
        ("federation.timeout", 0, "federation.timeout", "greater than 0", "0"),
        ("evaluation.false_accept_rates", [], "evaluation.false_accept_rates", "at least 1", "[]"),
        ("evaluation.false_accept_rates", [1.0], "evaluation.false_accept_rates.0", "less", "1.0"),
        ("evaluation.n_bootstrap", 39, "evaluation.n_bootstrap", "or equal to 40", "39"),
        ("evaluation.every", 0, "evaluation.every", "greater than 0", "0"),
        ("model.head.name", "arcfase", "model.head", "'arcface'", "arcfase"),
        ("aggregator", {"name": "krumm"}, "aggregator", "'multi_krum'", "krumm"),
        ("attack.trigger.size", 1.5, "attack.model_replacement.trigger.patch.size", "<= 1", "1.5"),
        (
            "attack.schedule",
            {"name": "single_shot", "round": 4},
            "config",
            "round <= n_rounds, got round=4, n_rounds=3",
            "{",
        ),
        (
            "engine",
            {"num_cpus": 1, "client_resources": {"num_cpus": 2}},
            "engine",
            "num_cpus needs >= client_resources.num_cpus=2, got 1",
            "1",
        ),
        (
            "engine",
            {"num_gpus": 0, "client_resources": {"num_gpus": 0.5}},
            "engine",
            "num_gpus needs >= client_resources.num_gpus=0.5, got 0.0",
            "0",
        ),
        ("compare", {"variants": {}, "reference": "a"}, "compare.variants", "at least 1", "{}"),
        (
            "compare",
            {"variants": {"a": {}}, "reference": "b"},
            "compare",
            "one of ['a'], got 'b'",
            "b",
        ),
        (
            "compare",
            {"variants": {"a": {}}, "reference": "a", "seeds": [1, 1]},
            "compare",
            "seeds need to differ, got (1, 1)",
            "1, 1",
        ),
        ("compare", {"variants": {"a b": {}}, "reference": "a b"}, "compare", "pattern", "'a b'"),
    ],
)
def test_an_error_names_file_field_need_and_finding(
    field: str, value: Any, where: str, need: str, found: str, tmp_path: Path
) -> None:
    path = written(tmp_path, with_field(tiny_content(tmp_path), field, value))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    line = str(caught.value).splitlines()[0]
    assert line.startswith(f"{path}: {where}")
    assert need.replace("<= 1", "less than or equal to 1") in line
    assert found in line.split("found ")[-1]


def test_every_problem_has_a_line_of_its_own(tmp_path: Path) -> None:
    content = with_field(tiny_content(tmp_path), "seed", -1)
    content = with_field(content, "training.epochs", 0)
    with pytest.raises(ConfigError) as caught:
        load_run(written(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    content = tiny_content(tmp_path)
    del content["data"]["split"]
    with pytest.raises(ConfigError, match=r"a\.yaml: data\.split: Field required"):
        load_run(written(tmp_path, content))


def test_merge_lays_mapping_over_mapping() -> None:
    base = {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": [1, 2], "c": 3}
    overrides = {"a": {"y": {"q": 5}, "z": 9}, "b": [7]}
    assert merge(base, overrides) == {
        "a": {"x": 1, "y": {"p": 1, "q": 5}, "z": 9},
        "b": [7],
        "c": 3,
    }
    assert base == {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": [1, 2], "c": 3}
    assert overrides == {"a": {"y": {"q": 5}, "z": 9}, "b": [7]}


def test_merge_replaces_a_method_by_another_whole() -> None:
    base = {"aggregator": {"name": "ariba", "quantile": 0.9}}
    assert merge(base, {"aggregator": {"name": "mean"}}) == {"aggregator": {"name": "mean"}}
    kept = merge(base, {"aggregator": {"name": "ariba", "memory": True}})
    assert kept == {"aggregator": {"name": "ariba", "quantile": 0.9, "memory": True}}
    assert merge(base, {"aggregator": {"quantile": 0.5}})["aggregator"]["name"] == "ariba"


def test_merge_overrides_what_is_no_mapping_either_way() -> None:
    assert merge({"attack": None}, {"attack": {"name": "x"}}) == {"attack": {"name": "x"}}
    assert merge({"attack": {"name": "x"}}, {"attack": None}) == {"attack": None}


def test_a_run_without_comparison_is_its_only_variant(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, seed=7)
    assert variants(config) == [("tiny", 7, config)]


def test_variants_come_by_seed_with_the_reference_first(tmp_path: Path) -> None:
    compare = {
        "seeds": [3, 1],
        "reference": "clean",
        "variants": {"b": {}, "clean": {"attack": None}, "a": {}},
    }
    runs = variants(tiny_config(tmp_path, compare=compare))
    assert [(variant, seed) for variant, seed, _ in runs] == [
        ("clean", 3),
        ("b", 3),
        ("a", 3),
        ("clean", 1),
        ("b", 1),
        ("a", 1),
    ]


def test_a_variant_is_a_run_below_the_comparison(tmp_path: Path) -> None:
    base = tiny_config(tmp_path, compare=COMPARISON)
    runs = {(variant, seed): config for variant, seed, config in variants(base)}
    attacked, clean = runs["attacked", 1], runs["clean", 1]
    assert attacked.folder == tmp_path / "tiny" / "attacked" / "seed-1"
    assert attacked.seed == 1 and attacked.compare is None
    assert attacked.evaluation.reference == clean.folder
    assert clean.evaluation.reference is None
    assert clean.attack is not None and clean.attack.malicious_share == 0.0
    assert clean.attack.trigger == attacked.attack.trigger
    same = attacked.model_copy(
        update={
            "name": base.name,
            "seed": base.seed,
            "output": base.output,
            "compare": base.compare,
            "evaluation": base.evaluation,
        }
    )
    assert same == base


def test_variants_keep_the_settings_of_evaluation_beside_the_reference(tmp_path: Path) -> None:
    runs = variants(tiny_config(tmp_path, compare=COMPARISON, evaluation={"every": 2}))
    assert all(config.evaluation.every == 2 for _, _, config in runs)
    assert all(config.evaluation.false_accept_rates == (0.01, 0.1) for _, _, config in runs)


@pytest.mark.parametrize("forbidden", ["name", "seed", "compare", "output"])
def test_a_variant_may_not_set_what_the_comparison_sets(forbidden: str, tmp_path: Path) -> None:
    compare = {"reference": "a", "variants": {"a": {forbidden: 1}}}
    path = written(tmp_path, tiny_content(tmp_path, compare=compare))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{path}: compare.variants.a: ")
    assert f"['{forbidden}']" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"federation": {"n_clients": 2, "clients_per_round": 3}}, "federation: "),
        ({"federation": {"clients": 3}}, "federation.clients: Extra inputs"),
        ({"aggregator": {"name": "nobody"}}, "aggregator: "),
        ({"aggregator": {"name": "mean", "n_byzantine": 1}}, "aggregator.mean.n_byzantine: Extra"),
        ({"training": 3}, "training: "),
    ],
)
def test_invalid_overrides_name_variant_and_field(
    overrides: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    compare = {"reference": "good", "variants": {"good": {}, "bad": overrides}}
    path = written(tmp_path, tiny_content(tmp_path, compare=compare))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{path}: compare.variants.bad: {problem}")


def test_overrides_fit_the_defaults_that_the_file_leaves_out(tmp_path: Path) -> None:
    """A field that the file does not name can be overridden like one that it names."""
    compare = {"reference": "a", "variants": {"a": {"federation": {"min_valid_replies": 3}}}}
    config = load_run(written(tmp_path, tiny_content(tmp_path, compare=compare)))
    ((_, _, run),) = variants(config)
    assert run.federation.min_valid_replies == 3 and run.federation.n_clients == 4


def test_expand_leaves_its_input_alone(tmp_path: Path) -> None:
    content = tiny_content(tmp_path, compare=COMPARISON)
    before = copy.deepcopy(content)
    expand(content, "attacked", 0, "x")
    assert content == before


def test_folder_is_output_and_name() -> None:
    content = tiny_content(Path("somewhere"))
    assert parse_config(content, RunConfig, "x").folder == Path("somewhere/tiny")
    del content["output"]
    assert parse_config(content, RunConfig, "x").folder == Path("runs/tiny")
