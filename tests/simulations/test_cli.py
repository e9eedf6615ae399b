import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

import simulations
from simulations.cli import app
from tests.simulations.in_process import Tamper, filled_with, in_process
from tests.simulations.tiny import COMPARISON, tiny_content

ROOT = Path(__file__).parents[2]


def written(folder: Path, **overrides: object) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content(folder, **overrides)))
    return str(path)


def called(*arguments: str, tamper: Tamper | None = None) -> Result:
    with in_process(tamper):
        return CliRunner().invoke(app, arguments)


def one_line_of_error(result: Result) -> str:
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    return result.stderr


ONE_ROUND = {"federation": {"n_rounds": 1}}


def test_run_ends_with_the_table_and_code_zero(tmp_path: Path) -> None:
    result = called("run", written(tmp_path, **ONE_ROUND))
    assert result.exit_code == 0, result.output
    assert "tiny seed 0 round 1/1 clients 4" in result.stdout
    assert "measured on people whom nobody trained on" in result.stdout
    assert f"run folder: {tmp_path / 'tiny'}" in result.stdout
    assert result.stderr == ""


def test_output_takes_the_run_elsewhere(tmp_path: Path) -> None:
    result = called("run", written(tmp_path, **ONE_ROUND), "--output", str(tmp_path / "a" / "b"))
    assert result.exit_code == 0
    assert (tmp_path / "a" / "b" / "tiny" / "result.json").is_file()
    assert not (tmp_path / "tiny").exists()


def test_resume_and_replace(tmp_path: Path) -> None:
    path = written(tmp_path, **ONE_ROUND)
    assert called("run", path).exit_code == 0
    in_the_way = called("run", path)
    assert in_the_way.exit_code == 2
    assert "found a run (--resume continues it, --replace deletes it)" in in_the_way.stderr
    assert "complete already" in called("run", path, "--resume").stdout
    assert "complete already" not in called("run", path, "--replace").stdout
    both = called("run", path, "--replace", "--resume")
    assert both.exit_code == 2
    assert one_line_of_error(both) == "error: --resume and --replace exclude each other\n"


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_faulty_configuration_ends_with_code_two(command: str, tmp_path: Path) -> None:
    path = written(tmp_path, seed=-1, sead=1)
    result = called(command, path)
    assert result.exit_code == 2
    lines = one_line_of_error(result).splitlines()
    assert len(lines) == 2 and all(path in line for line in lines)
    missing = called(command, str(tmp_path / "none.yaml"))
    assert missing.exit_code == 2
    assert "needed a readable file, found: No such file" in one_line_of_error(missing)


def test_faces_that_are_not_there_end_with_code_two(tmp_path: Path) -> None:
    content = tiny_content(tmp_path)
    content["data"]["faces"] = {"name": "folder", "root": str(tmp_path / "nothing")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    result = called("run", str(tmp_path / "tiny.yaml"))
    assert result.exit_code == 2
    error = one_line_of_error(result)
    assert error.startswith("error: data: ") and str(tmp_path / "nothing") in error


def test_a_run_that_fails_ends_with_code_one(tmp_path: Path) -> None:
    path = written(tmp_path, federation={"max_failed_rounds": 1})
    result = called("run", path, tamper=lambda client, _, reply: filled_with(float("nan"), reply))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: run failed: 1 rounds in a row kept the global model")
    assert "client 0: arrays[" in result.stderr and "Traceback" not in result.stderr


def test_every_site_failing_ends_with_code_one(tmp_path: Path) -> None:
    """A learning rate that no model survives: every site refuses its own loss."""
    path = written(
        tmp_path,
        training={"optimizer": {"learning_rate": 1e30}},
        federation={"max_failed_rounds": 1},
    )
    result = called("run", path)
    assert result.exit_code == 1
    assert "lower training.optimizer.learning_rate" in result.stderr


def test_an_interrupted_run_ends_with_code_130(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.execution.run", interrupt)
        result = called("run", written(tmp_path))
    assert result.exit_code == 130
    assert one_line_of_error(result) == "error: stopped; continue with --resume\n"


def test_check_counts_the_runs(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert called("check", path).stdout == f"{path}: valid, 1 run\n"
    path = written(tmp_path, compare=COMPARISON)
    result = called("check", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid, 4 runs\n")


def test_check_looks_into_the_variants(tmp_path: Path) -> None:
    compare = {"reference": "a", "variants": {"a": {}, "b": {"training": {"epochs": 0}}}}
    path = written(tmp_path, compare=compare)
    result = called("check", path)
    assert result.exit_code == 2
    assert f"{path}: compare.variants.b: training.epochs: " in one_line_of_error(result)


def test_table_is_that_of_the_run(tmp_path: Path) -> None:
    path = written(tmp_path, compare={**COMPARISON, "seeds": [0]}, **ONE_ROUND)
    assert called("run", path).exit_code == 0
    folder = tmp_path / "tiny"
    whole = called("table", str(folder))
    assert whole.exit_code == 0
    recorded = (folder / "table.md").read_text()
    assert sorted(whole.stdout.splitlines()) == sorted(recorded.splitlines())
    single = called("table", str(folder / "clean" / "seed-0"))
    assert single.exit_code == 0 and "| seed-0 | 1 |" in single.stdout


def test_table_of_nothing_ends_with_code_two(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        result = called("table", str(folder))
        assert result.exit_code == 2
        assert "needed finished runs, found no result.json" in one_line_of_error(result)


def test_help_names_commands_arguments_and_options() -> None:
    result = called("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("run", "check", "table"))
    assert called().exit_code == 2 and "run" in called().output
    text = called("run", "--help").stdout
    assert all(word in text for word in ("CONFIG", "--resume", "--replace", "--output"))
    assert called("walk").exit_code == 2
    assert called("run").exit_code == 2


STARTS = {
    "fedface run": [str(Path(sys.executable).with_name("fedface")), "run"],
    "python simulations/run.py": [sys.executable, str(ROOT / "simulations" / "run.py")],
    "python -m simulations.run": [sys.executable, "-m", "simulations.run"],
}


@pytest.mark.parametrize("start", STARTS)
def test_every_way_to_start_reaches_the_same_command(start: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [*STARTS[start], str(tmp_path / "none.yaml")],
        cwd=ROOT if start.startswith("python -m") else tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path}/none.yaml: needed a readable file, found: " + (
        "No such file or directory\n"
    )


def test_no_module_of_simulations_hides_another() -> None:
    """``python simulations/run.py`` puts simulations/ first on the path, in Ray's workers too."""
    own = {path.stem for path in Path(simulations.__file__).parent.iterdir()} - {"__init__"}
    assert "display" in own
    assert not own & sys.stdlib_module_names
    assert not own & set(packages_distributions())
