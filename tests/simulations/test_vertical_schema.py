from pathlib import Path
from typing import Any

import pytest
import yaml

from fedface.config import ConfigError, parse_config
from simulations.vertical_schema import (
    VerticalConfig,
    is_vertical,
    load_vertical,
    vertical_variants,
)
from tests.simulations.tiny_vertical import tiny_vertical, tiny_vertical_content

BINOMIAL = {
    "name": "poisson_binomial",
    "dim": 8,
    "theta": 0.1,
    "n_releases": 4,
    "n_parties": 2,
}


def test_the_tiny_run_is_valid_and_survives_yaml(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    assert config.folder == tmp_path / "tiny"
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.to_yaml_dict())), VerticalConfig, "x")
    assert again == config
    assert is_vertical(config.to_yaml_dict()) and not is_vertical({"name": "demo"})


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"kind": "horizontal"}, "kind: Input should be 'vertical'"),
        ({"parties": {"active": "nose"}}, "parties need views of"),
        ({"parties": {"active": "top_right"}}, "parties need one view each"),
        ({"parties": {"active": None, "passive": []}}, "parties need one view each"),
        ({"parties": {"active": None}}, "active.backbone is needed exactly when"),
        ({"training": {"n_rounds": 0}}, "training needs n_rounds"),
        ({"training": {"n_rounds": 0, "final_epochs": 2}}, "training.n_rounds=0 leaves"),
        (
            {"training": {"n_rounds": 0, "final_epochs": 2, "final_release": False}},
            "final_release=false needs n_rounds >= 1",
        ),
        ({"training": {"pretraining": {}}}, "data.split.public >= 2, got 0"),
        ({"training": {"n_rounds": 5}}, "n_releases needs >= 5"),
        ({"training": {"n_rounds": 4, "final_epochs": 1}}, "n_releases needs >= 5"),
        ({"passive": {"release": {"n_parties": 1}}}, "the number of passive parties, 2, got 1"),
        ({"training": {"present": "each_alone"}}, "need parties.active=null"),
        ({"evaluation": {"matching": {"gallery": "top_right", "probe": "nose"}}}, "needs two of"),
        ({"evaluation": {"matching": {"gallery": "a", "probe": "a"}}}, "matching needs two views"),
        ({"federation": {"drop_out": 1.0}}, "federation.drop_out"),
        (
            {"passive": {"release": {**BINOMIAL, "n_releases": 2}}},
            "passive.release.n_releases needs >= 3",
        ),
        (
            {"passive": {"release": {**BINOMIAL, "n_parties": 1}}},
            "the number of passive parties, 2, got 1",
        ),
        ({"passive": {"release": {**BINOMIAL, "dim": 9}}}, "embedding_size, 8, got 9"),
        ({"active": {"at": "cloud"}}, "active.at: Input should be 'server' or 'client'"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, overrides: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        tiny_vertical(tmp_path, **overrides)


@pytest.mark.parametrize(
    ("training", "every", "needed"),
    [
        ({"n_rounds": 3}, None, 3),
        ({"n_rounds": 3}, 1, 3),
        ({"n_rounds": 3, "final_epochs": 9}, 1, 4),  # bottom models change three times only
        ({"n_rounds": 1, "final_epochs": 9}, 5, 2),
        ({"n_rounds": 1, "final_epochs": 9, "final_release": False}, 5, 1),
    ],
)
def test_the_budget_that_a_run_needs(
    tmp_path: Path, training: dict[str, int], every: int | None, needed: int
) -> None:
    for n, fits in ((needed, True), (needed - 1, False)):
        if n < 1:
            continue  # a budget of none is refused for itself
        settings: dict[str, Any] = {
            "training": training,
            "evaluation": {"every": every},
            "passive": {"release": {"n_releases": n}},
        }
        if fits:
            tiny_vertical(tmp_path, **settings)
        else:
            with pytest.raises(ConfigError, match=f"n_releases needs >= {needed}"):
                tiny_vertical(tmp_path, **settings)


COMPARISON = {
    "seeds": [0, 1],
    "variants": {
        "open": {"passive": {"scale": {"name": "none"}, "release": {"name": "none"}}},
        "afe": {},
    },
}


def test_variants_have_folders_of_their_own(tmp_path: Path) -> None:
    runs = vertical_variants(tiny_vertical(tmp_path, compare=COMPARISON))
    assert [(name, seed) for name, seed, _ in runs] == [
        (name, seed) for seed in (0, 1) for name in ("open", "afe")
    ]
    assert len({run.folder for _, _, run in runs}) == 4
    for name, seed, run in runs:
        assert run.seed == seed and run.compare is None
        assert run.folder == tmp_path / "tiny" / name / f"seed-{seed}"
        assert run.passive.release.name == ("none" if name == "open" else "gaussian")


@pytest.mark.parametrize("overrides", [{"seed": 3}, {"parties": {"active": "nose"}}])
def test_a_variant_that_gives_no_run_is_named(tmp_path: Path, overrides: dict[str, Any]) -> None:
    path = tmp_path / "a.yaml"
    comparison = {"variants": {"good": {}, "bad": overrides}}
    path.write_text(yaml.safe_dump(tiny_vertical_content(tmp_path, compare=comparison)))
    with pytest.raises(ConfigError, match=r"compare\.variants\.bad"):
        load_vertical(path)


def test_output_takes_the_run_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tiny_vertical_content(tmp_path)))
    assert load_vertical(path, tmp_path / "b").folder == tmp_path / "b" / "tiny"


def test_the_active_party_is_a_node_where_it_is_a_client(tmp_path: Path) -> None:
    assert tiny_vertical(tmp_path).n_nodes == 2
    assert tiny_vertical(tmp_path, active={"at": "client"}).n_nodes == 3
    alone = tiny_vertical(tmp_path, active={"at": "client"}, parties={"passive": []})
    assert alone.n_nodes == 1
