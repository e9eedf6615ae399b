import json

import pytest
import torch

from tests.benchmarks.by_path import script

script("measuring")
worlds = script("vertical_world")
attacks = script("vertical_attacks")


def test_one_command_prints_one_table_and_writes_one_file(tmp_path, capsys) -> None:
    output = tmp_path / "attacks.json"
    rows = ["without", "frozen"]
    attacks.main(["--size", "tiny", "--epsilons", "4", "--only", *rows, "--output", str(output)])
    printed = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in printed if line.startswith("| ")]
    assert names == ["protection", "---", "AFE without noise", "AFE frozen, epsilon 4"]
    assert "flat grey" in printed[-1]
    content = json.loads(output.read_text())
    assert content["benchmark"] == "vertical_attacks" and content["settings"]["seeds"] == [0]
    (found,) = content["found"]["AFE frozen, epsilon 4"]
    assert found["labels"]["norm"] is None and found["labels"]["direction"] is None
    assert found["features"]["decoder"]["grey_ssim"] > 0
    assert "epsilon=4 under replace-one" in found["statement"]
    (clear,) = content["found"]["AFE without noise"]
    assert 0 <= clear["labels"]["norm"] <= 1 and clear["sigma"] == 0


def test_every_budget_has_three_rows() -> None:
    names = [p.name for p in attacks.protections((1.0, 4.0))]
    assert len(names) == len(set(names)) == 3 + 2 * 3
    with pytest.raises(SystemExit):
        attacks.main(["--only", "no such row"])


def test_known_records_are_the_first_of_each_label() -> None:
    assert attacks._first_of_each(torch.tensor([1, 0, 1, 1, 0]), 2).tolist() == [1, 4, 0, 2]


@pytest.mark.slow
def test_attacks_work_undefended_and_noise_stops_those_on_features() -> None:
    """The whole bench's point, on a small world: both directions leak, and DP guards one."""
    size = worlds.SIZES["small"]
    world = worlds.world_of(size, 0)
    judge = worlds.recogniser(world, 0, size.passes)
    none, noisy = worlds.Protection("none"), worlds.Protection("noise", 1.0)
    clear, hidden = (
        attacks.attack(world, size, protection, judge, 0) for protection in (none, noisy)
    )
    features = [clear["features"][name] for name in ("eigenfaces", "decoder")]
    assert max(found["lift_low"] for found in features) > 0
    assert all(found["lift"] < 0.25 for found in hidden["features"].values())
    assert clear["labels"]["direction"]["lift"] > 0.3
    assert hidden["labels"]["direction"]["lift"] > 0.1  # noise on features hides no label
    assert clear["labels"]["norm"] > 0.6
    assert clear["labels"]["completion"]["accuracy"] > clear["labels"]["untrained"]["accuracy"]


def test_several_seeds_show_mean_and_range() -> None:
    seeds = [{"ssim": 0.2, "lift": 0.1}, {"ssim": 0.4, "lift": 0.3}]
    assert attacks._inversion_cell(seeds) == "0.30 / +0.20 (+0.10..+0.30)"
    one = [{"ssim": 0.2, "lift": 0.1, "lift_low": -0.05, "lift_high": 0.25}]
    assert attacks._inversion_cell(one) == "0.20 / +0.10 (-0.05..+0.25)"
