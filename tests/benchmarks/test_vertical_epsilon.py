import json
from pathlib import Path

import pytest

from fedface.config import read_yaml
from fedface.vertical.ceiling import utility_ceiling
from tests.benchmarks.by_path import BENCHMARKS, script

script("measuring")
script("svg_chart")
epsilon = script("vertical_epsilon")

CONTENT = read_yaml(BENCHMARKS / "vertical_epsilon.yaml")
CLIP, LOW, AFE = CONTENT["arms"]


def test_every_case_is_a_run_with_a_folder_of_its_own(tmp_path: Path) -> None:
    cases = epsilon.cases(CONTENT, [1, 8], [0, 1])
    configs = [epsilon.config_of(CONTENT, tmp_path, case) for case in cases]
    assert len({config.folder for config in configs}) == len(cases) == 2 * (1 + 2 * 4)
    for (arm, at, seed, _), config in zip(cases, configs, strict=True):
        release = config.passive.release
        assert config.seed == seed and config.compare is None
        if arm == "unprotected":
            assert release.name == "none"
        elif arm == epsilon.UNCLIPPED:
            assert release.sigma == epsilon.releases(CONTENT, at).noise
        else:
            assert release.epsilon == at and release.n_releases == config.training.releases == 1


def test_with_a_view_of_its_own_the_active_party_alone_is_a_run() -> None:
    content = {**CONTENT, "base": {**CONTENT["base"], "parties": {"active": "left"}}}
    assert epsilon.cases(content, [1], [0])[0][:3] == (epsilon.ALONE, None, 0)


def test_the_ablation_has_the_same_baseline_and_its_arms_can_be_run(tmp_path: Path) -> None:
    arms = read_yaml(BENCHMARKS / "vertical_ablation.yaml")["arms"]
    assert next(iter(arms.items())) == (CLIP, CONTENT["arms"][CLIP])
    for case in epsilon.cases({**CONTENT, "arms": arms, "unclipped": None}, [4], [0]):
        epsilon.config_of(CONTENT, tmp_path, case)


def run_of(arm: str, at: float | None, accuracy: float, seed: int = 0) -> dict:
    return {
        "arm": arm,
        "epsilon": at,
        "seed": seed,
        "accuracy": accuracy,
        "n_right": round(1000 * accuracy),
        "n": 1000,
        "n_people": 4,
        "sigma_per_clip": None,
        "spent": {},
    }


RESULTS = [
    run_of("unprotected", None, 0.9),
    *(run_of(CLIP, 8, a, s) for s, a in enumerate((0.30, 0.34))),
    run_of(LOW, 8, 0.4),
    *(run_of(AFE, 8, a, s) for s, a in enumerate((0.44, 0.48))),
    run_of(epsilon.UNCLIPPED, 8, 0.7),
]


def test_what_is_closed_and_what_crosses() -> None:
    (row,) = epsilon.summary(CONTENT, RESULTS, [8])
    ceiling = utility_ceiling(1.0, epsilon.releases(CONTENT, 8).noise, 0.25)
    assert row["ceiling"] == ceiling and row["active party alone"] == 0.25
    assert row["arms"][CLIP]["closed"] == 0
    assert row["arms"][AFE]["closed"] == pytest.approx((0.46 - 0.32) / (ceiling - 0.32))
    assert row["arms"][AFE]["p_at_ceiling"] > 0.5
    crossing = [*RESULTS[:4], *(run_of(AFE, 8, 0.75, s) for s in (0, 1)), RESULTS[-1]]
    (row,) = epsilon.summary(CONTENT, crossing, [8])
    assert row["arms"][AFE]["p_at_ceiling"] < 1e-9


def test_a_low_unprotected_line_is_the_target() -> None:
    low = [run_of("unprotected", None, 0.5), *RESULTS[1:]]
    (row,) = epsilon.summary(CONTENT, low, [8])
    assert row["arms"][AFE]["closed"] == pytest.approx((0.46 - 0.32) / (0.5 - 0.32))
    none = [run_of("unprotected", None, 0.2), *RESULTS[1:]]
    (row,) = epsilon.summary(CONTENT, none, [8])
    assert row["arms"][AFE]["closed"] is None


def test_what_is_written(tmp_path: Path) -> None:
    text = epsilon.write(tmp_path, {"cores": 2}, CONTENT, RESULTS, [8])
    assert (tmp_path / "vertical_epsilon.md").read_text() == text
    assert "0.460 (0.440..0.480)" in text and "| 8 | " in text
    facts = json.loads((tmp_path / "vertical_epsilon.json").read_text())
    assert len(facts["results"]) == len(RESULTS) and facts["summary"][0]["epsilon"] == 8
    svg = (tmp_path / "vertical_epsilon.svg").read_text()
    assert svg.startswith("<svg") and AFE in svg and "ceiling" in svg


def test_an_arm_that_diverged_is_said_to_have(tmp_path: Path) -> None:
    lost = {"arm": epsilon.UNCLIPPED, "epsilon": 8, "seed": 0, "error": "needs a finite loss"}
    text = epsilon.write(tmp_path, {}, CONTENT, [*RESULTS[:-1], lost], [8])
    assert "| diverged |" in text
    assert epsilon.UNCLIPPED in (tmp_path / "vertical_epsilon.svg").read_text()


def test_a_run_without_enrolled_is_refused() -> None:
    with pytest.raises(ValueError, match="enrolled_test"):
        epsilon.measured((AFE, 8, 0, {}), {"evaluation": {"enrolled": None}})
