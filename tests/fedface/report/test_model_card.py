from pathlib import Path

import pytest

from fedface.report.model_card import render_model_card, write_model_card
from fedface.report.recorded import read_run
from fedface.report.run_folder import RunFolderError
from tests.fedface.report.recordings import HOSTILE, record_run

PRIVACY = {
    "unit": "image",
    "epsilon": 7.912,
    "delta": 1e-4,
    "target_epsilon": 8.0,
    "accountant": "prv",
    "sampling": "Poisson, rate 0.1 a step",
    "trust": "nobody but the site itself",
    "clip": 0.5,
    "images_per_subject": None,
    "per_round": {"noise_multiplier": 1.1, "sample_rate": 0.1, "n_steps": 10},
    "randomness": "secret",
}


def test_the_card_repeats_what_was_recorded(tmp_path: Path) -> None:
    card = write_model_card(record_run(tmp_path / "tiny").path).read_text()
    for text in (
        "# tiny\n",
        "**Do not use this model.**",
        "101 people (1010 images) train, 10 (111) set thresholds",
        "19 (222) are tested on",
        "Sites: 4, with 240 to 260 images of 25 to 26 people each",
        "Left out as unreadable or unusable: 5.",
        "`small_conv, norm=batch, widths=[4, 4, 4, 4], embedding_size=8`",
        "`cosface, scale=16.0, margin=0.2`",
        "`ariba, quantile=0.99`",
        "Attack, by site 1: `model_replacement, malicious_share=0.25, trigger={patch, size=0.2}",
        "Measured on 19 people: 1234 comparisons of the same person, 56789 of different people",
        "95 % bootstrap intervals",
        "| 0.001 | 0.7490 | 0.4688 | 0.4062 to 0.5312 | 0.0005 | 0.00025 to 0.001 | few cal",
        "| 0.01 | 0.7400 | 0.5000 | 0.4375 to 0.5625 | 0.005 | 0.0025 to 0.01 |  |",
        "EER: 0.1000",
        "Rank-1: 0.5625 (0.4375 to 0.6875), 19 enrolled, 77 probes",
        "| 0.01 | own | 0.6812 | 0.6500 to 0.7125 | 0.0156 | 0.0078 | 0.6656 |",
        "| 0.01 | the clean run's | 0.6812 |",
        "reconstructed from the paper's abstracts",
        "No differential privacy",
        "seed 0",
        "Commit `0123456789abcdef`",
        "torch 2.13.0",
    ):
        assert text in card
    assert "yaml" not in card


def test_the_card_does_not_tell_the_path_of_the_faces(tmp_path: Path) -> None:
    card = render_model_card(read_run(record_run(tmp_path / "tiny").path))
    assert "`lfw (lfw)`, Labeled Faces in the Wild" in card
    assert "somebody" not in card


def test_a_clean_run_measured_without_a_trigger(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "tiny", malicious=()).path)
    assert "so this is what the trigger does by itself" in render_model_card(run)
    run.result["evaluation"]["backdoor"] = None
    card = render_model_card(run)
    assert "None: how this model behaves under a backdoor" in card
    assert "Do not use" not in card
    assert "Attack, by site" not in card


def test_differential_privacy_ariba_and_data_are_claimed_only_where_they_are(
    tmp_path: Path,
) -> None:
    run = read_run(record_run(tmp_path / "tiny", recorded_data=False).path)
    run.config["aggregator"] = {"name": "mean"}
    run.result["privacy"] = PRIVACY
    card = render_model_card(run)
    assert "No differential privacy" not in card
    assert "for one image: (epsilon 7.91, delta 0.0001)" in card
    assert "| image | 7.912 | 0.0001 | 8 | prv | 1.1 | 0.5 | Poisson, rate 0.1 a step |" in card
    assert "A person with k images has up to k times that epsilon" in card
    run.result["privacy"] = {**PRIVACY, "epsilon": None}
    assert "No differential privacy" in render_model_card(run)
    assert "reconstructed from" not in card
    assert "Counts of\n  images were not recorded" in card


def test_an_unmeasured_model_says_why_in_harmless_text(tmp_path: Path) -> None:
    card = render_model_card(read_run(record_run(tmp_path / "tiny", failed=HOSTILE).path))
    assert "The final model could not be measured: &lt;script>" in card
    assert "<script" not in card
    assert "49" not in card.split("could not be measured: ")[1].splitlines()[0]


def test_the_card_is_reproducible(tmp_path: Path) -> None:
    path = record_run(tmp_path / "tiny").path
    assert write_model_card(path).read_bytes() == write_model_card(path).read_bytes()


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "tiny").path)
    del run.config["training"]
    with pytest.raises(RunFolderError, match="needed the recorded field 'training', found none"):
        render_model_card(run)
