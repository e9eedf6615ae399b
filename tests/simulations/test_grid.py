from pathlib import Path
from typing import Any

import pytest
import yaml

from fedface.config import ConfigError
from simulations.grid import cell_path, cells, is_grid, load_grid
from simulations.schedule import Costs, next_cell
from tests.simulations.tiny import tiny_content

KEY = {"trigger": {"name": "patch"}, "goal": {"name": "key"}}


def grid_content(output: Path, **overrides: Any) -> dict[str, Any]:
    """What a YAML file of the tiny grid would hold, its top fields replaced by ``overrides``."""
    base = tiny_content(output)
    for field in ("name", "attack", "output"):
        del base[field]
    return {
        "name": "grid",
        "base": base,
        "attacks": {"replace": {"name": "model_replacement", **KEY}},
        "defences": {"krum": {"name": "multi_krum"}, "fedavg": {"name": "mean"}},
        "reference": "fedavg",
        "output": str(output),
        **overrides,
    }


def written(folder: Path, **overrides: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_content(folder, **overrides)))
    return path


TWO_ATTACKS = {
    "replace": {"name": "model_replacement", **KEY},
    "poison": {"name": "poisoning", "malicious_share": 0.5, **KEY},
}


def test_every_combination_is_a_cell_and_clean_ones_come_first(tmp_path: Path) -> None:
    grid = load_grid(
        written(
            tmp_path,
            attacks=TWO_ATTACKS,
            seeds=[3, 1],
            malicious_shares=[0.25, 0.3],
            partitions={"p": {"name": "by_identity"}, "q": {"name": "iid"}},
        )
    )
    found = [(c.partition, c.seed, c.share, c.attack, c.defence) for c in cells(grid)]
    expected = []
    for partition in ("p", "q"):
        for seed in (3, 1):
            for share, attack in (
                (0.0, "clean"),
                (0.25, "replace"),
                (0.3, "replace"),
                (0.5, "poison"),
            ):
                expected += [(partition, seed, share, attack, d) for d in ("fedavg", "krum")]
    assert found == expected


def test_a_cell_is_the_run_that_its_place_says(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, attacks=TWO_ATTACKS, seeds=[7]))
    by_name = {(c.attack, c.defence): c for c in cells(grid)}
    clean, attacked = by_name["clean", "krum"], by_name["poison", "krum"]
    assert clean.config.attack is None and clean.config.evaluation.reference is None
    assert clean.needs is None
    assert attacked.config.attack is not None
    assert attacked.config.attack.malicious_share == 0.5
    assert attacked.config.aggregator.name == "multi_krum" and attacked.config.seed == 7
    assert attacked.config.engine.name == "in_process"
    assert attacked.path == Path("cells/disjoint/0.5/poison/krum/seed-7")
    assert attacked.config.folder == tmp_path / "grid" / attacked.path
    reference = tmp_path / "grid" / "cells/disjoint/clean/clean/fedavg/seed-7"
    assert attacked.config.evaluation.reference == reference
    assert attacked.needs == by_name["clean", "fedavg"].path
    assert by_name["clean", "fedavg"].reference and not clean.reference


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"attacks": {"mine": {"name": "poisoning", **KEY, "weight": -1}}}, "attacks.mine.weight:"),
        ({"attacks": {"mine": {"name": "nobody"}}}, "attacks.mine:"),
        ({"attacks": {"clean": {"name": "poisoning", **KEY}}}, "other than 'clean'"),
        ({"attacks": {"a": {"malicious_share": 2.0}}}, "attacks.a.malicious_share needs"),
        ({"attacks": {"a b": {"name": "poisoning"}}}, "attacks"),
        (
            {"defences": {"fedavg": {"name": "mean"}, "k": {"name": "multi_krum", "what": 1}}},
            "defences.k.what:",
        ),
        ({"partitions": {"p": {"name": "dirichlet", "alpha": -1}}}, "partitions.p."),
        ({"base": {}}, "base.model:"),
        ({"base": {"seed": 1}}, "base.seed needs to be left out"),
        ({"base": {"data": {"partition": {"name": "iid"}}}}, "base.data.partition needs"),
        ({"base": {"engine": {"name": "flower"}}}, "base.engine needs the name in_process"),
        ({"reference": "nobody"}, "reference needs to be one of ['fedavg', 'krum']"),
        ({"seeds": [1, 1]}, "seeds need to differ"),
        ({"workers": {"cpus": 2, "num_cpus": 1}}, "workers: Value error, num_cpus needs >= cpus=2"),
        ({"more": 1}, "more:"),
    ],
)
def test_errors_name_file_and_field(overrides: dict[str, Any], line: str, tmp_path: Path) -> None:
    path = written(tmp_path, **overrides)
    with pytest.raises(ConfigError) as error:
        load_grid(path)
    lines = str(error.value).splitlines()
    assert all(each.startswith(f"{path}: ") for each in lines)
    assert any(line in each for each in lines), lines
    assert len(set(lines)) == len(lines), "each problem is told once, not once per cell"


def test_a_run_is_no_grid(tmp_path: Path) -> None:
    assert not is_grid(tiny_content(tmp_path)) and is_grid(grid_content(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_content(tmp_path)))
    with pytest.raises(ConfigError, match="defences: needed a grid's"):
        load_grid(path)


def test_what_others_need_runs_first_then_the_longest(tmp_path: Path) -> None:
    every = cells(load_grid(written(tmp_path, attacks=TWO_ATTACKS, seeds=[0, 1])))
    costs, complete, waiting, order = Costs(), set(), list(every), []
    while (cell := next_cell(waiting, complete, costs)) is not None:
        waiting.remove(cell)
        order.append(cell)
        complete.add(cell.path)
        costs.add(cell, {"krum": 9.0, "fedavg": 1.0}[cell.defence])
    assert not waiting and len(order) == len(every)
    assert [c.path for c in order[:2]] == [
        cell_path("disjoint", 0, "clean", "fedavg", seed) for seed in (0, 1)
    ]
    assert costs.expected(order[0]) == 1.0
    assert costs.time_left(every, 2) == sum({"krum": 9, "fedavg": 1}[c.defence] for c in every) / 2
    assert costs.time_left(every[:1], 8) == 1.0
    assert Costs().time_left(every, 2) is None
    # with nothing complete, attacked cells wait for their clean reference
    assert next_cell([c for c in every if c.needs], set(), Costs()) is None


def test_unknown_attacks_are_expected_to_take_the_mean(tmp_path: Path) -> None:
    every = cells(load_grid(written(tmp_path, attacks=TWO_ATTACKS)))
    costs = Costs()
    costs.add(every[0], 2.0)
    costs.add(every[1], 6.0)
    assert costs.expected(every[1]) == 6.0
    assert costs.expected(every[-1]) == 4.0
