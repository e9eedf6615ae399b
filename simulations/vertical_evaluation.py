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
from fedface.evaluation.identification import evaluate_identification
from fedface.evaluation.intervals import Acceptance
from fedface.evaluation.verification import evaluate_verification
from fedface.random import numpy_stream
from fedface.vertical.active import ActiveParty
from simulations.vertical_build import CALIBRATION, ENROLLED_TEST, TEST
from simulations.vertical_schema import VerticalConfig
from strategies.vertical import ActiveRecords, Received

Pieces = list[tuple[Tensor, Received]]
"""Record numbers, and party by party the embeddings that were received for them."""

Use = Callable[[Tensor | None, Received, Tensor], Any]


def evaluate_vertical(
    config: VerticalConfig,
    active: ActiveParty,
    records: ActiveRecords,
    groups: NDArray[np.int64],
    pieces: Pieces,
    device: torch.device,
    server_round: int,
) -> dict[str, Any]:
    """Returns every figure as plain JSON values.

    Args:
        config: The run.
        active: The active party.
        records: What it has of the aligned records.
        groups: ``(n_aligned,)`` the group of each.
        pieces: Embeddings received for all records that are measured on.
        device: Where the active party computes.
        server_round: Names the bootstrap's draws.

    Raises:
        ValueError: If joint embeddings have no direction, or the people are too few.
    """
    settings = config.evaluation
    rng = numpy_stream(config.seed, "bootstrap", server_round)
    number = torch.cat([piece for piece, _ in pieces]).numpy()
    identities = records.labels.numpy()[number]
    group = groups[number]

    def joint(party: int | None) -> NDArray[np.float32]:
        return np.concatenate(_each(active.embeddings, records, pieces, device, party))

    if settings.matching is None:
        everything = joint(None)
        test, calibration = (everything[group == g] for g in (TEST, CALIBRATION))
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
        rank = evaluate_identification(test, of_test, (1,), settings.n_bootstrap, rng)
    else:
        passive = config.parties.passive
        gallery = joint(passive.index(settings.matching.gallery))
        probes = joint(passive.index(settings.matching.probe))
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
            sides[TEST],
            sides[CALIBRATION],
            settings.false_accept_rates,
            settings.n_bootstrap,
            rng,
        )
        rank = identify_across(sides[TEST], (1,), settings.n_bootstrap, rng)
    return {
        "verification": asdict(verification),
        "identification": asdict(rank),
        "enrolled": _enrolled(config, active, records, group, identities, pieces, device, rng),
        "backdoor": None,
    }


def _enrolled(
    config: VerticalConfig,
    active: ActiveParty,
    records: ActiveRecords,
    group: NDArray[np.int64],
    identities: NDArray[np.int64],
    pieces: Pieces,
    device: torch.device,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """How often the right one of the enrolled is named, on their records that nobody trained on."""
    kept = group == ENROLLED_TEST
    if not kept.any():
        return None
    found = torch.cat(_each(active.predictions, records, pieces, device, None)).cpu().numpy()
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


def _each(
    use: Use, records: ActiveRecords, pieces: Pieces, device: torch.device, party: int | None
) -> list[Any]:
    """What ``use`` makes of every piece; of one party's embeddings alone, or of all for None."""
    made = []
    for number, received in pieces:
        shown: Received = [z if party in (None, p) else None for p, z in enumerate(received)]
        made.append(use(records.views(number, device), shown, number.to(device)))
    return made
