import json

import pytest
import torch

from fedface.privacy import EmbeddingRelease
from tests.benchmarks.by_path import script

script("measuring")
worlds = script("vertical_world")
bench = script("vertical_audit")


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    return bench.distant_faces(worlds.SIZES["tiny"], 0)


def test_two_faces_lie_on_the_sphere_and_no_further_than_its_diameter(faces) -> None:
    assert faces.shape == (2, bench.DIM)
    assert faces.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert 0 < float((faces[0] - faces[1]).norm()) <= 2


def test_right_claims_stand_and_wrong_ones_fall(faces) -> None:
    found = {(c.name, c.n_releases): bench.examine(c, 8000, 0) for c in bench.claims(8.0, faces)}
    assert {key: f["refuted"] for key, f in found.items()} == {
        key: f["is_wrong"] for key, f in found.items()
    }
    assert found["opposite", 1]["accounted"] == 8.0
    assert found["absent", 1]["accounted"] < 8.0
    right, less, more = found["opposite", 10]["scale_p_values"]
    assert right > 1e-3 and less < 1e-6 and more < 1e-6


def test_the_table_names_every_claim_once_right_ones_first(faces) -> None:
    found = [
        {"name": c.name, "epsilon_asked": 4.0, **bench.examine(c, 100, seed)}
        for seed in (0, 1)
        for c in bench.claims(4.0, faces)
    ]
    rows = bench.table(found).rows
    assert [row[0] for row in rows[:3]] == ["opposite", "absent", "two faces"]
    assert [row[7] for row in rows] == ["no"] * 6 + ["yes"] * 4
    assert all(row[6].endswith("/2") for row in rows)


def test_a_refuted_right_claim_ends_with_an_error(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "audit.json"
    arguments = ["--size", "tiny", "--runs", "2000", "--epsilons", "16", "--output", str(output)]
    bench.main(arguments)
    assert "opposite" in capsys.readouterr().out
    assert len(json.loads(output.read_text())["found"]) == 10
    monkeypatch.setattr(EmbeddingRelease, "noise", property(lambda self: 0.05))
    with pytest.raises(SystemExit, match="right claim was refuted"):
        bench.main(arguments)
