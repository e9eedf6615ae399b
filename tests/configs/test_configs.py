"""Every configuration that fedface ships describes valid runs, with the faces wherever they lie."""

from pathlib import Path
from typing import Any

import pytest

from fedface.config import read_yaml
from simulations.grid import cells, is_grid, load_grid
from simulations.schema import RunConfig, load_run, variants
from simulations.vertical_schema import (
    VerticalConfig,
    is_vertical,
    load_vertical,
    vertical_variants,
)

ROOT = Path(__file__).parents[2]
EVERY = sorted((ROOT / "configs").rglob("*.y*ml"))
GRIDS = [path for path in EVERY if is_grid(read_yaml(path))]
VERTICAL = [path for path in EVERY if is_vertical(read_yaml(path))]
FILES = [path for path in EVERY if path not in (*GRIDS, *VERTICAL)]


def test_there_are_configurations() -> None:
    assert ROOT / "configs" / "demo.yaml" in FILES
    assert ROOT / "configs" / "compare" / "smoke.yaml" in GRIDS


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_grid_loads_and_each_cell_is_a_run(path: Path) -> None:
    grid = load_grid(path)
    runs = cells(grid)
    assert len({run.path for run in runs}) == len(runs)
    n_shares = sum(len(grid.shares(attack)) for attack in grid.attacks)
    each = len(grid.partitions) * len(grid.seeds) * len(grid.defences)
    assert len(runs) == each * (1 + n_shares)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_loads_and_all_its_variants_expand(path: Path) -> None:
    config = load_run(path)
    runs = variants(config, str(path))
    n_variants, n_seeds = (
        (1, 1)
        if config.compare is None
        else (len(config.compare.variants), len(config.compare.seeds))
    )
    assert len(runs) == n_variants * n_seeds
    assert len({run.folder for _, _, run in runs}) == len(runs)
    for _, seed, run in runs:
        assert run.seed == seed
        assert RunConfig.model_validate(run.to_yaml_dict()) == run


@pytest.mark.parametrize("path", VERTICAL, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_vertical_run_loads_and_all_its_variants_expand(path: Path) -> None:
    runs = vertical_variants(load_vertical(path), str(path))
    assert len({run.folder for _, _, run in runs}) == len(runs) >= 2
    for _, seed, run in runs:
        assert run.seed == seed
        assert VerticalConfig.model_validate(run.to_yaml_dict()) == run


def test_no_two_of_them_write_into_one_folder() -> None:
    folders = [load_run(path).folder for path in FILES]
    folders += [load_grid(path).folder for path in GRIDS]
    folders += [load_vertical(path).folder for path in VERTICAL]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_faces_on_disk_follow_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = getattr(load_run(path).data.faces, "root", None)
    if root is None:
        pytest.skip("its faces are drawn, not read")
    monkeypatch.setenv("FEDFACE_DATA", "/somewhere/else")
    assert Path("/somewhere/else") in load_run(path).data.faces.root.parents
    monkeypatch.delenv("FEDFACE_DATA")
    assert Path("../shared/data") in load_run(path).data.faces.root.parents


def test_the_annotated_configuration_names_every_field() -> None:
    path = ROOT / "configs" / "horizontal" / "every_option.yaml"
    assert missing(load_run(path).to_yaml_dict(), read_yaml(path)) == []


def missing(resolved: dict[str, Any], written: dict[str, Any], above: str = "") -> list[str]:
    """The fields of ``resolved`` that ``written`` leaves to their defaults."""
    fields = [above + name for name in resolved if name not in written]
    for name, value in resolved.items():
        if isinstance(value, dict) and isinstance(written.get(name), dict):
            fields += missing(value, written[name], f"{above}{name}.")
    return fields
