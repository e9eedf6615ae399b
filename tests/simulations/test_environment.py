import json
from pathlib import Path

from simulations.environment import MAIN_PACKAGES, describe_environment, git_commit


def test_the_environment_names_every_main_package_and_is_json():
    environment = json.loads(json.dumps(describe_environment()))
    assert set(MAIN_PACKAGES) <= set(environment["packages"])
    assert environment["main_packages"] == list(MAIN_PACKAGES)
    assert environment["cpus"] >= 1 and environment["date"].endswith("+00:00")


def test_a_folder_outside_git_has_no_commit(tmp_path: Path):
    assert git_commit(tmp_path) is None
    assert git_commit(tmp_path / "absent") is None
