"""The smallest vertical run that still has everything: two passive parties, an own view, noise."""

from pathlib import Path
from typing import Any

from fedface.config import parse_config
from simulations.schema import merge
from simulations.vertical_schema import VerticalConfig


def tiny_vertical_content(output: Path, **overrides: Any) -> dict[str, Any]:
    """What a YAML file of the tiny run would hold, with ``overrides`` laid over it."""
    convolutions = {"name": "small_conv", "widths": [4, 4, 8, 8]}
    content = {
        "kind": "vertical",
        "name": "tiny",
        "data": {
            "faces": {
                "name": "renderer",
                "n_identities": 18,
                "images_per_identity": 6,
                "size": 16,
            },
            "views": {"name": "quadrants", "size": 16},
            "split": {"test": 5, "calibration": 4, "enrolled_test": 0.34},
            "missing_share": 0.1,
        },
        "parties": {"active": "top_left", "passive": ["top_right", "bottom_left"]},
        "passive": {
            "backbone": {**convolutions, "embedding_size": 8},
            "scale": {"name": "quantile"},
            "release": {"name": "gaussian", "epsilon": 100.0, "n_releases": 4, "n_parties": 2},
        },
        "active": {
            "backbone": {**convolutions, "embedding_size": 8},
            "hidden": [16],
            "embedding_size": 8,
            "missing": "last",
        },
        "training": {"n_rounds": 3, "batch_size": 8, "augmentation": {"shift": 1}},
        "evaluation": {"every": 2, "false_accept_rates": [0.1], "n_bootstrap": 40},
        "engine": {"name": "in_process"},
        "output": str(output),
    }
    return merge(content, overrides)


def tiny_vertical(output: Path, **overrides: Any) -> VerticalConfig:
    """The tiny run: nine people train, two passive parties and an active one, three rounds."""
    return parse_config(tiny_vertical_content(output, **overrides), VerticalConfig, "tiny")
