import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedface.config import ConfigError
from fedface.report.export import describe_model, export_model, load_model
from fedface.report.run_folder import RunFolderError
from tests.fedface.report.recordings import embeddings, final_model, record_run


def test_the_exported_model_embeds_as_the_final_model_of_the_run(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    export_model(path)
    loaded = load_model(path)
    assert not loaded.training
    np.testing.assert_array_equal(embeddings(loaded), embeddings(final_model(0)))
    earlier = embeddings(final_model(0, server_round=2))
    assert np.abs(embeddings(loaded) - earlier).max() > 1e-3


def test_only_parameters_and_buffers_of_the_backbone_are_exported(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    export_model(path)
    tensors = load_file(path / "model.safetensors")
    expected = final_model(0).state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_description_repeats_what_was_recorded(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "tiny", seed=3)
    described = export_model(folder.path)
    assert described == describe_model(folder.path)
    points = folder.result()["evaluation"]["verification"]["points"]
    assert [(t.false_accept_rate, t.threshold) for t in described.thresholds] == [
        (p["alpha"], p["threshold"]) for p in points
    ]
    assert (described.image_size, described.embedding_size, described.server_round) == (16, 8, 3)
    assert (described.run, described.seed) == ("tiny", 3)
    assert described.trained_under_attack == "model_replacement"
    assert (described.fedface, described.git_commit) == ("0.1.0", "0123456789abcdef")


def test_a_clean_run_says_so_and_an_unmeasured_one_has_no_thresholds(tmp_path: Path) -> None:
    described = export_model(record_run(tmp_path / "a", malicious=(), failed="no length").path)
    assert described.trained_under_attack is None
    assert described.thresholds == ()


def test_exporting_twice_gives_the_same_files(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    export_model(path)
    first = [(path / name).read_bytes() for name in ("model.safetensors", "model.json")]
    export_model(path)
    assert first == [(path / name).read_bytes() for name in ("model.safetensors", "model.json")]
    assert not list(path.glob(".*partial*"))


def test_without_the_last_checkpoint_nothing_is_exported(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    (path / "checkpoints" / "round-000003.safetensors").unlink()
    with pytest.raises(RunFolderError, match="checkpoint of round 3, found one of round 2"):
        export_model(path)
    for file in (path / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(RunFolderError, match="checkpoint of round 3, found none"):
        export_model(path)
    assert not (path / "model.json").exists()


def test_the_size_of_the_images_must_be_known(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny", recorded_data=False).path
    with pytest.raises(RunFolderError, match="needed the size of the images"):
        export_model(path)
    assert not (path / "model.safetensors").exists()


def test_a_backbone_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    text = (path / "config.yaml").read_text().replace("name: small_conv", "name: big_conv")
    (path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: backbone: .*big_conv"):
        export_model(path)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("norm: batch", "norm: group"))
    with pytest.raises(ConfigError, match=r"checkpoint of round 3: needed the tensors .*features"):
        export_model(path)
    (path / "config.yaml").write_text(text.replace("embedding_size: 8", "embedding_size: 9"))
    with pytest.raises(ConfigError, match=r"checkpoint of round 3: .* needs shape"):
        export_model(path)
    assert not (path / "model.safetensors").exists()


def _edit(path: Path, **changes: object) -> None:
    content = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "f" * 64}, "needed sha256 f"),
        ({"format": "fedface-model-2"}, "format: Input should be 'fedface-model-1'"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"image_size": 32}, "fc.weight needs shape"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = record_run(tmp_path / "tiny").path
    export_model(path)
    _edit(path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_model(path)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    described = export_model(path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    for content in ({**tensors, "extra": torch.ones(1)}, dict(list(tensors.items())[1:])):
        save_file(content, weights)
        with pytest.raises(ConfigError, match=f"needed sha256 {described.sha256}"):
            load_model(path)
        _edit(path, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
        with pytest.raises(ConfigError, match="needed the tensors of the described"):
            load_model(path)
        _edit(path, sha256=described.sha256)
    weights.unlink()
    with pytest.raises(ConfigError, match="needed the weights, found: No such file"):
        load_model(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "needed JSON"), ("[]", "needed a mapping of fields")],
)
def test_a_folder_without_a_description_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)
