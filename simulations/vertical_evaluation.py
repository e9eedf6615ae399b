"""What a vertical federation is worth: strangers verified and identified, the enrolled recognised.

Every embedding of a passive party that is used here was released: clipped, noised and accounted.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedface.evaluation.across import Sides, identify_across, verify_across
from fedface.evaluation.identification import IdentificationReport, evaluate_identification
from fedface.evaluation.intervals import Acceptance
from fedface.evaluation.verification import VerificationReport, evaluate_verification
from fedface.random import numpy_stream
from fedface.vertical.trainer import ActiveTrainer, Pieces, Received
from simulations.vertical_build import CALIBRATION, ENROLLED_TEST, TEST
from simulations.vertical_schema import VerticalConfig

Use = Callable[[Tensor | None, Received, Tensor], Any]


def evaluate_vertical(
    config: VerticalConfig,
    trainer: ActiveTrainer,
    groups: NDArray[np.int64],
    pieces: Pieces,
    server_round: int,
) -> dict[str, Any]:
    """Returns every figure as plain JSON values.

    Args:
        config: The run.
        trainer: The active party with its records.
        groups: ``(n_aligned,)`` the group of each record.
        pieces: Embeddings received for all records that are measured on.
        server_round: Names the bootstrap's draws.

    Raises:
        ValueError: If joint embeddings have no direction, or the people are too few.
    """
    rng = numpy_stream(config.seed, "bootstrap", server_round)
    number = torch.cat([piece for piece, _ in pieces]).numpy()
    identities, group = trainer.records.labels.numpy()[number], groups[number]
    strangers = _across if config.evaluation.matching is not None else _together
    verification, rank = strangers(config, trainer, group, identities, pieces, rng)
    return {
        "verification": asdict(verification),
        "identification": asdict(rank),
        "enrolled": _enrolled(config, trainer, group, identities, pieces, rng),
        "backdoor": None,
    }


def _together(
    config: VerticalConfig,
    trainer: ActiveTrainer,
    group: NDArray[np.int64],
    identities: NDArray[np.int64],
    pieces: Pieces,
    rng: np.random.Generator,
) -> tuple[VerificationReport, IdentificationReport]:
    """Strangers by the joint embeddings of whole records."""
    settings = config.evaluation
    joint = np.concatenate(_each(trainer.party.embeddings, trainer, pieces, None))
    test, calibration = (joint[group == g] for g in (TEST, CALIBRATION))
    of_test, of_calibration = (identities[group == g] for g in (TEST, CALIBRATION))
    verification = evaluate_verification(
        test,
        of_test,
        calibration,
        of_calibration,
        settings.false_accept_rates,
        settings.n_bootstrap,
        rng,
    )
    return verification, evaluate_identification(test, of_test, (1,), settings.n_bootstrap, rng)


def _across(
    config: VerticalConfig,
    trainer: ActiveTrainer,
    group: NDArray[np.int64],
    identities: NDArray[np.int64],
    pieces: Pieces,
    rng: np.random.Generator,
) -> tuple[VerificationReport, IdentificationReport]:
    """Strangers enrolled by one party's view alone, searched by another's."""
    settings, passive = config.evaluation, config.parties.passive
    if settings.matching is None:
        raise ValueError("matching across views needs evaluation.matching, got none")
    gallery, probes = (
        np.concatenate(_each(trainer.party.embeddings, trainer, pieces, passive.index(view)))
        for view in (settings.matching.gallery, settings.matching.probe)
    )
    sides = {
        g: Sides(
            gallery[group == g],
            identities[group == g],
            probes[group == g],
            identities[group == g],
        )
        for g in (TEST, CALIBRATION)
    }
    verification = verify_across(
        sides[TEST], sides[CALIBRATION], settings.false_accept_rates, settings.n_bootstrap, rng
    )
    return verification, identify_across(sides[TEST], (1,), settings.n_bootstrap, rng)


def _enrolled(
    config: VerticalConfig,
    trainer: ActiveTrainer,
    group: NDArray[np.int64],
    identities: NDArray[np.int64],
    pieces: Pieces,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """How often the right one of the enrolled is named, on their records that nobody trained on."""
    kept = group == ENROLLED_TEST
    if not kept.any():
        return None
    found = torch.cat(_each(trainer.party.predictions, trainer, pieces, None)).cpu().numpy()
    right = (found == identities)[kept]
    n_people = int(identities[kept].max()) + 1
    hits = np.bincount(identities[kept][right], minlength=n_people).astype(np.float64)
    total = np.bincount(identities[kept], minlength=n_people).astype(np.float64)
    estimate = Acceptance(hits, total).estimate(config.evaluation.n_bootstrap, rng)
    return {
        "accuracy": estimate.rate,
        "low": estimate.low,
        "high": estimate.high,
        "n_right": int(right.sum()),
        "n": int(kept.sum()),
        "n_people": n_people,
    }


def _each(use: Use, trainer: ActiveTrainer, pieces: Pieces, party: int | None) -> list[Any]:
    """What ``use`` makes of every piece; of one party's embeddings alone, or of all for None."""
    made, device = [], trainer.device
    for number, received in pieces:
        shown: Received = [
            z.to(device) if z is not None and party in (None, p) else None
            for p, z in enumerate(received)
        ]
        made.append(use(trainer.records.views(number, device), shown, number.to(device)))
    return made
