"""From a vertical configuration to its active party, wherever it is to be."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.vertical_active import ActiveClient
from clients.vertical_state import PartyState
from fedface.random import stream
from fedface.vertical.alignment import hashed
from fedface.vertical.trainer import ActiveRecords, ActiveSide, ActiveTrainer, Pieces
from simulations.vertical_build import (
    TRAIN,
    VerticalRecords,
    alignment_key,
    build_active,
    party_folder,
)
from simulations.vertical_evaluation import evaluate_vertical
from simulations.vertical_schema import VerticalConfig


def build_active_side(
    config: VerticalConfig, data: VerticalRecords, device: torch.device
) -> ActiveSide:
    """Returns what the active party of a run brings: it holds every record and its labels."""

    def prepare(rows: Tensor, is_fresh: bool) -> ActiveTrainer:
        return _trainer(config, data, rows, is_fresh, device)

    def measure(trainer: ActiveTrainer, pieces: Pieces, server_round: int) -> dict[str, Any]:
        groups = data.groups[trainer.records.rows.numpy()]
        return evaluate_vertical(config, trainer, groups, pieces, server_round)

    return ActiveSide(hashed(data.ids, alignment_key(config)), prepare, measure)


def build_active_client(
    config: VerticalConfig, data: VerticalRecords, device: torch.device
) -> ActiveClient:
    """Returns the active party as a client; its node is the one after the passive parties."""
    folder = party_folder(config, len(config.parties.passive))
    return ActiveClient(build_active_side(config, data, device), PartyState(folder))


def _trainer(
    config: VerticalConfig,
    data: VerticalRecords,
    rows: Tensor,
    is_fresh: bool,
    device: torch.device,
) -> ActiveTrainer:
    """The active party on the aligned records; one that will be loaded need not be pretrained."""
    training, view = config.training, config.parties.active
    if not is_fresh:
        training = training.model_copy(update={"pretraining": None})
        config = config.model_copy(update={"training": training})
    number = rows.numpy()
    is_training = data.groups[number] == TRAIN
    records = ActiveRecords(
        rows=rows,
        labels=torch.from_numpy(data.identities[number]),
        own=None if view is None else data.views[view][number],
        training=torch.from_numpy(np.flatnonzero(is_training)),
        measured=torch.from_numpy(np.flatnonzero(~is_training)),
    )

    def augmented(own: Tensor, server_round: int, batch: int) -> Tensor:
        rng = stream(config.seed, "own augmentation", server_round, batch)
        return training.augmentation(own, rng)

    keeps = training.final_epochs > 0 and not training.final_release
    return ActiveTrainer(
        build_active(config, data, len(rows), device),
        records,
        augmented,
        device,
        n_rounds=training.total_rounds,
        alone=training.present == "each_alone",
        keeps_round=training.n_rounds if keeps else None,
    )
