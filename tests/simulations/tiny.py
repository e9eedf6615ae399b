"""The smallest run that still has everything: sites, a backdoor, thresholds, checkpoints."""

from pathlib import Path
from typing import Any

from fedface.config import parse_config
from simulations.schema import RunConfig, merge

N_CLIENTS = 4


def tiny_content(output: Path, **overrides: Any) -> dict[str, Any]:
    """What a YAML file of the tiny run would hold, with ``overrides`` laid over it."""
    content = {
        "name": "tiny",
        "data": {
            "faces": {
                "name": "renderer",
                "n_identities": 24,
                "images_per_identity": 6,
                "size": 16,
            },
            "split": {"test": 6, "calibration": 6},
        },
        "model": {
            "backbone": {"name": "small_conv", "widths": [4, 4, 8, 8], "embedding_size": 16},
            "head": {"name": "cosface", "scale": 16, "margin": 0.2},
        },
        "training": {"batch_size": 6},
        "federation": {"n_clients": N_CLIENTS, "n_rounds": 3},
        "attack": {
            "name": "model_replacement",
            "malicious_share": 0.25,
            "trigger": {"name": "patch"},
            "goal": {"name": "key"},
        },
        "evaluation": {"false_accept_rates": [0.01, 0.1], "n_bootstrap": 40},
        "output": str(output),
    }
    return merge(content, overrides)


def tiny_config(output: Path, **overrides: Any) -> RunConfig:
    """The tiny run: 12 training people at 4 sites, one of them malicious, 3 rounds."""
    return parse_config(tiny_content(output, **overrides), RunConfig, "tiny")


COMPARISON = {
    "seeds": [0, 1],
    "reference": "clean",
    "variants": {
        "attacked": {"aggregator": {"name": "mean"}},
        "clean": {"attack": {"malicious_share": 0.0}},
    },
}
