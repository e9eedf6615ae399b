"""Recorded runs with made-up figures, to report on without training."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedface import parameters
from fedface.backbones import SmallConv
from fedface.evaluation.embedding import embed
from fedface.random import numpy_stream, stream
from fedface.report.run_folder import Checkpoint, RunFolder

N_CLIENTS = 4
N_ROUNDS = 3
BACKBONE = SmallConv(norm="batch", widths=(4, 4, 4, 4), embedding_size=8)
IMAGE_SIZE = 16
ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "python": "3.11.7",
    "machine": "Linux",
    "cpus": 2,
    "gpu": None,
    "git_commit": "0123456789abcdef",
    "main_packages": ["fedface", "torch", "absent"],
    "packages": {"fedface": "0.1.0", "torch": "2.13.0", "yaml": "6.0"},
}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202e&amp;"


def record_run(
    path: Path,
    *,
    name: str = "tiny",
    seed: int = 0,
    malicious: Sequence[int] = (1,),
    scored: bool = True,
    rejected: dict[int, str] | None = None,
    failed: str | None = None,
    shift: float = 0.0,
    environment: dict[str, Any] | None = None,
    recorded_data: bool = True,
) -> RunFolder:
    """Records a complete run of three rounds; ``shift`` is added to its rates."""
    config = config_of(path, name, seed, malicious)
    folder = RunFolder.create(path, config, environment or ENVIRONMENT)
    for server_round in range(1, N_ROUNDS + 1):
        folder.append(round_event(server_round, malicious, scored, rejected or {}))
        evaluation = evaluation_event(server_round, shift)
        if failed is not None and server_round == N_ROUNDS:
            evaluation = {"event": "evaluation", "round": server_round, "failed": failed}
        folder.append(evaluation)
        model = final_model(seed, server_round)
        tensors = {**parameters.trainable(model), **parameters.buffers(model)}
        folder.save(Checkpoint(server_round, tensors, {"memory/counts": torch.ones(2)}))
    folder.write_result(result_of(folder, name, seed, malicious, recorded_data))
    return folder


def record_comparison(path: Path, seeds: Sequence[int] = (0, 1)) -> RunFolder:
    """Records a comparison: ``clean`` and ``attacked``, each with every seed."""
    config = config_of(path, path.name, 0, ())
    config["compare"] = {
        "variants": {"attacked": {}, "clean": {}},
        "seeds": list(seeds),
        "reference": "clean",
    }
    top = RunFolder.create(path, config, ENVIRONMENT)
    for seed in seeds:
        for variant, malicious, scored in (("attacked", (1,), True), ("clean", (), False)):
            record_run(
                path / variant / f"seed-{seed}",
                name=f"seed-{seed}",
                seed=seed,
                malicious=malicious,
                scored=scored,
                shift=0.1 * seed,
            )
    return top


def final_model(seed: int, server_round: int = N_ROUNDS) -> torch.nn.Module:
    """The global model after a round, its batch statistics moved off their start."""
    model = BACKBONE.build(IMAGE_SIZE, stream(seed, "test model", server_round))
    model(torch.rand(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=stream(seed, "batch")))
    return model


def embeddings(model: torch.nn.Module) -> np.ndarray:
    """What a model makes of five images of noise."""
    rng = numpy_stream(0, "noise")
    return embed(model, rng.integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8))


def config_of(path: Path, name: str, seed: int, malicious: Sequence[int]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "data": {
            "faces": {"name": "lfw", "root": "/home/somebody/lfw", "size": None},
            "split": {"test": 20, "calibration": 10},
            "partition": {"name": "by_identity"},
            "pairs": None,
        },
        "model": {
            "backbone": BACKBONE.model_dump(mode="json"),
            "head": {"name": "cosface", "scale": 16.0, "margin": 0.2},
        },
        "training": {"epochs": 1, "batch_size": 8},
        "federation": {"n_clients": N_CLIENTS, "n_rounds": N_ROUNDS, "clients_per_round": None},
        "aggregator": {"name": "ariba", "quantile": 0.99},
        "attack": {
            "name": "model_replacement",
            "malicious_share": len(malicious) / N_CLIENTS,
            "trigger": {"name": "patch", "size": 0.2},
            "goal": {"name": "key"},
        },
        "engine": {"name": "flower"},
        "output": str(path.parent),
        "compare": None,
    }


def round_event(
    server_round: int, malicious: Sequence[int], scored: bool, rejected: dict[int, str]
) -> dict[str, Any]:
    """Malicious clients are pruned from round 2 on; client 3 is pruned in round 3."""
    clients = []
    for client in sorted(set(range(N_CLIENTS)) - set(rejected)):
        bad = client in malicious
        pruned = (bad and server_round >= 2) or (client == 3 and server_round == 3)
        clients.append(
            {
                "client": client,
                "n_examples": 10 + client,
                "n_steps": 2,
                "loss": 1.5,
                "norm": 1.25 + client,
                "trust": 0.0 if pruned else 0.25,
                "score": 10.0 * bad + client + server_round / 10 if scored else None,
                "layer_scores": {"layers.0.0": 0.5 * bad, "fc": 0.125} if scored else {},
                "pruned": pruned,
                "malicious": bad,
            }
        )
    return {
        "event": "round",
        "round": server_round,
        "seconds": 0.5,
        "loss": 1.5,
        "clients": clients,
        "attack": bool(malicious),
        "pruned": [client["client"] for client in clients if client["pruned"]],
        "rejected": {str(client): why for client, why in rejected.items()},
        "kept_global": None,
    }


def evaluation_event(server_round: int, shift: float) -> dict[str, Any]:
    tar = 0.2 + 0.1 * server_round + shift
    points = [
        {
            "alpha": alpha,
            "threshold": 0.75 - alpha,
            "tar": tar - less,
            "low": tar - less - 0.0625,
            "high": tar - less + 0.0625,
            "fmr": alpha / 2,
            "fmr_low": alpha / 4,
            "fmr_high": alpha,
            "thin_support": alpha < 0.01,
        }
        for alpha, less in ((0.001, 0.03125), (0.01, 0.0))
    ]
    attack = [
        {
            "alpha": point["alpha"],
            "threshold": point["threshold"],
            "asr": 0.3 * server_round - 0.21875 + shift,
            "low": 0.3 * server_round - 0.25 + shift,
            "high": 0.3 * server_round - 0.1875 + shift,
            "asr_without_trigger": 0.015625,
            "asr_on_clean_model": 0.0078125,
            "lift": 0.3 * server_round - 0.234375 + shift,
            "collateral_fmr": 0.03,
        }
        for point in points
    ]
    return {
        "event": "evaluation",
        "round": server_round,
        "verification": {
            "points": points,
            "refused": [],
            "eer": 0.4 - 0.1 * server_round,
            "n_genuine": 1234,
            "n_impostor": 56789,
            "n_identities": 19,
            "n_calibration_impostor": 4321,
            "confidence": 0.95,
        },
        "identification": {
            "rates": [{"rank": 1, "rate": 0.5625, "low": 0.4375, "high": 0.6875}],
            "n_gallery": 19,
            "n_probes": 77,
            "confidence": 0.95,
        },
        "pairs": None,
        "backdoor": {"goal": "key", "recalibrated": attack, "deployed": copy.deepcopy(attack)},
    }


def result_of(
    folder: RunFolder, name: str, seed: int, malicious: Sequence[int], recorded_data: bool
) -> dict[str, Any]:
    rounds = folder.events("round")
    exclusion = [None if c in malicious else 1 / 3 if c == 3 else 0.0 for c in range(N_CLIENTS)]
    result = {
        "name": name,
        "seed": seed,
        "aggregator": "ariba",
        "attack": "model_replacement" if malicious else None,
        "n_rounds": len(rounds),
        "seconds": 1.5,
        "rounds_kept_global": [],
        "n_dropped_replies": sum(len(event["rejected"]) for event in rounds),
        "evaluation": folder.events("evaluation")[-1],
        "detection": {
            "n_malicious": 3 * len(malicious),
            "n_honest": 3 * (N_CLIENTS - len(malicious)),
            "tpr": 2 / 3 if malicious else None,
            "fpr": 1 / 9 if malicious else 1 / 12,
            "auroc": 1.0 if malicious else None,
            "auroc_within_rounds": 1.0 if malicious else None,
            "honest_exclusion": exclusion,
            "max_honest_exclusion": 1 / 3,
            "n_clean_rounds": 0 if malicious else 3,
            "clean_exclusion": None,
        },
    }
    if recorded_data:
        result["malicious_clients"] = list(malicious)
        result["data"] = {
            "image_size": IMAGE_SIZE,
            "train": {"identities": 101, "images": 1010},
            "calibration": {"identities": 10, "images": 111},
            "test": {"identities": 19, "images": 222},
            "victim_images": None,
            "n_sites": N_CLIENTS,
            "images_per_site": [240, 260],
            "identities_per_site": [25, 26],
            "n_skipped": 5,
        }
    return result
