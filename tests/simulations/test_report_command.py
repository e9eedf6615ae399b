from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedface.data.faces import Faces, Skip
from fedface.report.completion import complete_run
from simulations.build import RunData
from simulations.cli import app
from simulations.execution import _who_took_part
from simulations.people import Person
from simulations.schema import RunConfig
from tests.fedface.report.recordings import record_comparison, record_run

RUNNER = CliRunner()


def _faces(n_people: int, n_images: int) -> Faces:
    identities = np.repeat(np.arange(n_people), n_images)
    images = np.zeros((len(identities), 32, 32, 3), np.uint8)
    return Faces(images, identities, tuple(f"secret-name-{i}" for i in range(n_people)))


def test_report_remakes_every_piece_and_names_it(tmp_path: Path) -> None:
    path = record_comparison(tmp_path / "both", seeds=(0,)).path
    done = RUNNER.invoke(app, ["report", str(path)])
    assert done.exit_code == 0
    written = [Path(line) for line in done.output.splitlines()]
    assert len(written) == 2 * 3 + 1
    assert all(file.is_file() for file in written)
    assert written[-1] == path / "report.html"


@pytest.mark.parametrize("missing", ["config.yaml", "result.json", "environment.json"])
def test_report_refuses_what_is_no_complete_run(tmp_path: Path, missing: str) -> None:
    path = record_run(tmp_path / "tiny").path
    (path / missing).unlink()
    done = RUNNER.invoke(app, ["report", str(path)])
    assert done.exit_code == 2
    assert f"error: {path}" in done.output and ": needed" in done.output
    assert missing in done.output
    assert not (path / "report.html").exists()


def test_report_refuses_a_run_of_another_backbone(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    complete_run(path)
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("name: small_conv", "name: big_conv"))
    done = RUNNER.invoke(app, ["report", str(path)])
    assert done.exit_code == 2
    assert "big_conv" in done.output


def test_a_result_counts_people_and_images_and_names_nobody() -> None:
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {
                "faces": {"name": "renderer", "n_identities": 9, "images_per_identity": 2},
                "split": {"test": 3, "calibration": 2},
            },
            "model": {"backbone": {"name": "small_conv"}, "head": {"name": "softmax"}},
            "federation": {"n_clients": 3, "n_rounds": 1},
            "attack": {
                "name": "model_replacement",
                "malicious_share": 0.4,
                "trigger": {"name": "patch"},
                "goal": {"name": "impersonate", "n_photos": 1},
            },
        }
    )
    parts = (np.arange(2), np.arange(2, 6), np.arange(6, 8))
    victim = Person(np.zeros((1, 3, 32, 32)), np.zeros((4, 32, 32, 3), np.uint8))  # type: ignore
    data = RunData(
        _faces(4, 2),
        parts,
        _faces(2, 3),
        _faces(3, 5),
        victim,
        None,
        (Skip("secret-name-7/1.jpg", "broken"),),
    )
    facts = _who_took_part(config, data)
    assert facts["data"] == {
        "image_size": 32,
        "train": {"identities": 4, "images": 8},
        "calibration": {"identities": 2, "images": 6},
        "test": {"identities": 3, "images": 15},
        "victim_images": 5,
        "n_sites": 3,
        "images_per_site": [2, 4],
        "identities_per_site": [1, 2],
        "n_skipped": 1,
    }
    assert len(facts["malicious_clients"]) == 1
    assert "secret" not in str(facts)
