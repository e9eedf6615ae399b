import json
from pathlib import Path
from typing import Any

import pytest

from fedface.report.run_folder import RunFolder
from simulations.results import detection, summarise
from tests.simulations.tiny import tiny_config


def client(
    number: int, pruned: bool = False, malicious: bool = False, score: float | None = None
) -> dict[str, Any]:
    return {"client": number, "pruned": pruned, "malicious": malicious, "score": score}


def event(server_round: int, clients: list[dict[str, Any]], attack: bool = True) -> dict[str, Any]:
    return {
        "event": "round",
        "round": server_round,
        "seconds": 1.25,
        "clients": clients,
        "attack": attack,
        "rejected": {},
        "kept_global": None,
    }


def test_detection_counts_client_rounds() -> None:
    """Client 2 of three is malicious, attacks in rounds 1 and 2, stays away in round 2."""
    rounds = [
        event(1, [client(0), client(1, pruned=True), client(2, pruned=True, malicious=True)]),
        event(2, [client(0), client(1, pruned=True)]),
        event(3, [client(0), client(1), client(2, malicious=True)], attack=False),
        event(4, [client(0), client(1), client(2, malicious=True)]),
    ]
    found = detection(rounds, n_clients=3)
    assert found is not None
    assert (found["n_malicious"], found["n_honest"]) == (2, 9)
    assert found["tpr"] == pytest.approx(1 / 2)
    assert found["fpr"] == pytest.approx(2 / 9)
    assert found["honest_exclusion"] == (0.0, 0.5, 0.0)
    assert found["max_honest_exclusion"] == 0.5
    assert found["auroc"] is None and found["auroc_within_rounds"] is None
    assert found["n_clean_rounds"] == 2
    assert found["clean_exclusion"] == pytest.approx(1 / 5)


def test_detection_reads_the_scores_where_all_have_one() -> None:
    rounds = [
        event(1, [client(0, score=1.0), client(1, score=3.0, malicious=True)]),
        event(2, [client(0, score=9.0), client(1, score=10.0, malicious=True)]),
    ]
    found = detection(rounds, n_clients=5)
    assert found is not None
    assert found["auroc_within_rounds"] == 1.0
    assert found["auroc"] == 0.75
    assert found["honest_exclusion"] == (0.0, None, None, None, None)
    rounds[1]["clients"][0]["score"] = None
    found = detection(rounds, n_clients=5)
    assert found is not None and found["auroc"] is None and found["tpr"] == 0.0


def test_detection_takes_rounds_in_which_nobody_answered() -> None:
    assert detection([], n_clients=3) is None
    assert detection([event(1, [])], n_clients=3) is None
    found = detection([event(1, []), event(2, [client(0)])], n_clients=3)
    assert found is not None and found["n_honest"] == 1 and found["n_clean_rounds"] == 1


def test_the_summary_is_drawn_from_the_recorded_facts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, seed=3)
    folder = RunFolder.create(config.folder, {}, {})
    lost = {**event(2, []), "kept_global": "why", "rejected": {"0": "a", "3": "b"}}
    for fact in (
        event(1, [client(0)]),
        {"event": "evaluation", "round": 1, "eer": 0.5},
        lost,
        {"event": "evaluation", "round": 2, "eer": 0.4},
    ):
        folder.append(fact)
    result = summarise(config, folder)
    assert json.loads(json.dumps(result, allow_nan=False))["name"] == "tiny"
    assert result["seed"] == 3 and result["aggregator"] == "mean"
    assert result["attack"] == "model_replacement"
    assert result["n_rounds"] == 2 and result["seconds"] == 2.5
    assert result["rounds_kept_global"] == [2] and result["n_dropped_replies"] == 2
    assert result["evaluation"]["eer"] == 0.4


def test_nobody_malicious_is_no_attack(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "x", {}, {})
    for config in (
        tiny_config(tmp_path, attack={"malicious_share": 0.0}),
        tiny_config(tmp_path).model_copy(update={"attack": None}),
    ):
        result = summarise(config, folder)
        assert result["attack"] is None
        assert result["evaluation"] is None and result["detection"] is None
