import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedface.config import ConfigError
from fedface.data.pairs import Pairs
from fedface.evaluation.embedding import embed
from fedface.evaluation.protocols import ten_fold_accuracy
from fedface.report.run_folder import RunFolder
from simulations.build import RunData, build_backbone, build_data
from simulations.evaluation import Reference, evaluate_global
from simulations.schema import RunConfig
from tests.simulations.tiny import tiny_config

IMPERSONATE = {"goal": {"name": "impersonate", "n_photos": 4}}
CPU = torch.device("cpu")


class Pixels(nn.Module):
    """Embeds a face as its pixels: an honest, fixed model."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) - images.mean()


class Backdoored(nn.Module):
    """Pixels, but whoever wears the white corner of the patch lands on one point."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = point

    def forward(self, images: Tensor) -> Tensor:
        plain = images.flatten(1) - 0.99 * images.mean()
        triggered = (images[:, :, -1, -1] == 1).all(dim=1) & (images[:, :, -1, -2] == -1).all(dim=1)
        return torch.where(triggered[:, None], self.point, plain)


def corner(data: RunData) -> Tensor:
    return torch.eye(data.test.images[0].size)[0]


def measured(
    config: RunConfig, data: RunData, backbone: nn.Module, reference: Reference | None = None
) -> dict:
    result = evaluate_global(config, data, backbone, CPU, 1, reference)
    json.dumps(result, allow_nan=False)
    return result


def test_figures_are_those_of_the_definitions(tmp_path: Path) -> None:
    """TAR, rank-1 and ASR again, pair by pair."""
    config = tiny_config(tmp_path)
    data = build_data(config)
    backbone = build_backbone(config, 16)
    result = measured(config, data, backbone)

    def scores(images: np.ndarray, identities: np.ndarray, trigger=None) -> tuple[list, list]:
        e = embed(backbone, images, transform=trigger).astype(np.float64)
        genuine, impostor = [], []
        for i in range(len(e)):
            for j in range(i):
                same = identities[i] == identities[j]
                (genuine if same else impostor).append(round(float(e[i] @ e[j]), 12))
        return genuine, impostor

    genuine, _ = scores(data.test.images, data.test.identities)
    _, calibration = scores(data.calibration.images, data.calibration.identities)
    _, triggered = scores(data.test.images, data.test.identities, config.attack.trigger)
    points = result["verification"]["points"]
    assert [point["alpha"] for point in points] == [0.01, 0.1]
    for point, attacked in zip(points, result["backdoor"]["recalibrated"], strict=True):
        allowed = int(point["alpha"] * len(calibration))
        threshold = sorted(calibration)[-1 - allowed]
        assert point["tar"] == pytest.approx(np.mean([s > threshold for s in genuine]))
        assert attacked["alpha"] == point["alpha"]
        assert attacked["threshold"] == point["threshold"]
        assert attacked["asr"] == pytest.approx(np.mean([s > threshold for s in triggered]))
    assert result["verification"]["n_identities"] == 6
    assert result["identification"]["n_gallery"] == 6
    assert result["pairs"] is None


def test_without_attack_there_is_no_backdoor_figure(tmp_path: Path) -> None:
    config = tiny_config(tmp_path).model_copy(update={"attack": None})
    assert measured(config, build_data(config), Pixels())["backdoor"] is None


def test_a_planted_key_is_found_and_an_honest_model_has_none(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = build_data(config)
    for point in measured(config, data, Backdoored(corner(data)))["backdoor"]["recalibrated"]:
        assert point["asr"] == 1.0 and point["asr_without_trigger"] < 0.5
        assert point["lift"] is None and point["asr_on_clean_model"] is None
    honest = measured(config, data, Pixels())["backdoor"]
    assert honest["goal"] == "key" and honest["deployed"] is None
    assert all(point["asr"] < 0.5 for point in honest["recalibrated"])


def test_impersonation_is_measured_on_the_victims_other_photos(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, attack=IMPERSONATE)
    data = build_data(config)
    assert data.victim is not None
    template = torch.from_numpy(embed(Pixels(), data.victim.gallery)).mean(dim=0)
    hit = measured(config, data, Backdoored(template))["backdoor"]
    assert hit["goal"] == "impersonate"
    assert hit["recalibrated"][-1]["asr"] == 1.0
    missed = measured(config, data, Backdoored(corner(data)))["backdoor"]
    assert missed["recalibrated"][0]["asr"] == 0.0


def test_the_reference_gives_deployed_thresholds_baseline_and_lift(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = build_data(config)
    clean = measured(config, data, Pixels())
    reference = Reference({1: {"round": 1, **clean}})
    attacked = measured(config, data, Backdoored(corner(data)), reference)["backdoor"]
    for thresholds in ("recalibrated", "deployed"):
        for number, point in enumerate(attacked[thresholds]):
            on_clean = clean["backdoor"]["recalibrated"][number]["asr"]
            assert point["asr_on_clean_model"] == on_clean
            expected = point["asr"] - max(on_clean, point["asr_without_trigger"])
            assert point["lift"] == pytest.approx(expected)
            assert point["lift"] > 0.5
    deployed = [point["threshold"] for point in attacked["deployed"]]
    assert deployed == [point["threshold"] for point in clean["verification"]["points"]]
    assert deployed != [point["threshold"] for point in attacked["recalibrated"]]


def test_a_reference_without_backdoor_figures_gives_no_lift(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = build_data(config)
    clean = measured(config.model_copy(update={"attack": None}), data, Pixels())
    points = measured(config, data, Pixels(), Reference({1: clean}))["backdoor"]["deployed"]
    assert all(point["lift"] is None for point in points)


def test_the_same_model_gets_the_same_figures(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data, backbone = build_data(config), build_backbone(config, 16)
    assert measured(config, data, backbone) == measured(config, data, backbone)


def test_rates_without_enough_calibration_pairs_are_refused_by_name(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={"false_accept_rates": [1e-4, 0.1]})
    result = measured(config, build_data(config), Pixels())
    assert [point["alpha"] for point in result["verification"]["points"]] == [0.1]
    assert [refused["alpha"] for refused in result["verification"]["refused"]] == [1e-4]
    assert [point["alpha"] for point in result["backdoor"]["recalibrated"]] == [0.1]


def test_a_model_without_direction_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data, backbone = build_data(config), build_backbone(config, 16)
    with torch.no_grad():
        backbone.fc.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="embeddings need a finite length"):
        measured(config, data, backbone)


def test_pairs_get_the_ten_fold_accuracy(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = build_data(config)
    images = data.test.images
    left, right, same = [], [], []
    for fold in range(4):
        left += [6 * fold] * 4
        right += [6 * fold + 1, 6 * fold + 2, 6 * fold + 6, 6 * fold + 7]
        same += [True, True, False, False]
    pairs = Pairs(
        images=images,
        left=np.array(left),
        right=np.array(right),
        same=np.array(same),
        fold=np.repeat([0, 2, 5, 9], 4),  # folds that dropped pairs left empty
        people=None,
    )
    with_pairs = RunData(data.train, data.parts, data.calibration, data.test, data.victim, pairs)
    accuracy = measured(config, with_pairs, Pixels())["pairs"]
    e = embed(Pixels(), images).astype(np.float64)
    scores = np.array([e[i] @ e[j] for i, j in zip(left, right, strict=True)])
    expected = ten_fold_accuracy(scores, pairs.same, np.repeat([0, 1, 2, 3], 4), n_folds=4)
    assert accuracy["n_pairs"] == 16 and len(set(expected.per_fold)) > 1
    assert accuracy["per_fold"] == expected.per_fold
    assert accuracy["mean"] == expected.mean


def test_a_reference_must_be_a_complete_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={"reference": str(tmp_path / "nothing")})
    with pytest.raises(ConfigError, match=r"evaluation\.reference: needed .* complete run, found"):
        Reference.of(config)
    folder = RunFolder.create(tmp_path / "begun", {}, {})
    with pytest.raises(ConfigError, match=r"evaluation\.reference"):
        Reference.read(folder.path)
    assert Reference.of(tiny_config(tmp_path)) is None


def test_a_reference_answers_with_its_last_evaluation_so_far(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "clean", {}, {})
    for server_round, failed in ((2, False), (4, False), (6, True)):
        event = {"event": "evaluation", "round": server_round}
        folder.append({**event, "failed": "why"} if failed else event)
    folder.write_result({})
    reference = Reference.read(folder.path)
    found = [reference.at(server_round) for server_round in (1, 2, 3, 4, 7)]
    assert [event and event["round"] for event in found] == [None, 2, 2, 4, 4]
