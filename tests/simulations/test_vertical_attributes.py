"""Vertical runs in which a passive party holds attributes instead of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedface.config import ConfigError
from simulations import vertical_app
from simulations.vertical_build import build_client, build_records
from tests.simulations.test_vertical_execution import equal, facts, fresh_process, lasting, ran
from tests.simulations.tiny_vertical import tiny_vertical

__all__ = ["fresh_process"]

BOTH: dict[str, Any] = {
    "data": {"attributes": {"name": "renderer", "noise": 0.1}},
    "parties": {"passive": ["top_right", "attributes"]},
}
ALONE: dict[str, Any] = {
    "data": {
        "attributes": {"name": "renderer", "noise": 0.1},
        "split": {"public": 3},
        "missing_share": 0.0,
    },
    "parties": {"active": None, "passive": ["attributes"]},
    "active": {"backbone": None},
    "passive": {
        "release": {"epsilon": 1000.0, "n_releases": 20, "n_parties": 1},
        "optimizer": {"learning_rate": 0.1},
    },
    "training": {"n_rounds": 12, "pretraining": {"epochs": 2}},
    "evaluation": {"every": None},
}


def test_each_record_has_the_attributes_of_its_own_person(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path, **BOTH)
    records = build_records(config)
    table = records.views["attributes"]
    assert table.shape[0] == len(records) and table.ndim == 2 and table.dtype == np.float32
    people = np.array([name.split("/")[0] for name in records.ids])
    means = {person: table[people == person].mean(0) for person in people}
    names = sorted(means)
    nearest = [
        names[np.argmin([np.linalg.norm(row - means[name]) for name in names])] for row in table
    ]
    assert nearest == people.tolist()
    party = build_client(config, records, 1, torch.device("cpu"))
    assert party.images.shape[1] == table.shape[1]
    assert records.image_size == 16


def test_an_attribute_party_trains_and_is_resumed(tmp_path: Path) -> None:
    whole = ran(tiny_vertical(tmp_path / "whole", **BOTH))
    (first, *_) = whole.events("round")
    assert set(first["answered"]) == {"top_right", "attributes"} and first["refused"] == {}
    config = tiny_vertical(tmp_path / "killed", **BOTH)
    ran(config)
    for path in (config.folder / "checkpoints").glob("*round-000003*"):
        path.unlink()
    (config.folder / "result.json").unlink()
    vertical_app._worker.cache_clear()
    ran(config, resume=True)
    assert facts(config.folder) == facts(whole.path)
    assert equal(lasting(config.folder), lasting(whole.path))


def test_attributes_alone_name_people(tmp_path: Path) -> None:
    result = ran(tiny_vertical(tmp_path, **ALONE)).result() or {}
    enrolled = result["evaluation"]["enrolled"]
    assert enrolled["n_people"] == 6 and enrolled["accuracy"] > 0.6  # by chance: 1 / 6
    vertical_app._worker.cache_clear()
    client = ran(
        tiny_vertical(
            tmp_path / "client", **{**ALONE, "active": {"backbone": None, "at": "client"}}
        )
    )
    assert (client.result() or {})["evaluation"] == result["evaluation"]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"parties": {"passive": ["attributes"]}}, "parties need views of"),
        ({**BOTH, "parties": {"active": "attributes"}}, "parties.active needs a view of pictures"),
        (
            {"data": {**BOTH["data"], "views": {"name": "kinds", "kinds": ["a", "b"]}}},
            "cut each record from one picture, got kinds",
        ),
        (
            {"data": {**BOTH["data"], "faces": {"name": "olivetti"}}},
            "data.attributes.name=renderer needs data.faces.name=renderer, got olivetti",
        ),
        ({**BOTH, "passive": {"attribute_hidden": [0]}}, "attribute_hidden"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, overrides: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        tiny_vertical(tmp_path, **overrides)
