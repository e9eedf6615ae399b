"""The final figures of a run, drawn from what it recorded."""

from dataclasses import asdict
from typing import Any

import numpy as np

from fedface.evaluation.detection import detection_report
from fedface.report.run_folder import RunFolder
from simulations.private import describe_privacy
from simulations.schema import RunConfig


def summarise(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Returns the last evaluation, the defence's detection figures and what went wrong."""
    rounds = folder.events("round")
    evaluations = folder.events("evaluation")
    return {
        "name": config.name,
        "seed": config.seed,
        "aggregator": config.aggregator.name,
        "attack": _attack_name(config),
        "n_rounds": len(rounds),
        "seconds": round(sum(event["seconds"] for event in rounds), 1),
        "rounds_kept_global": [event["round"] for event in rounds if event["kept_global"]],
        "n_dropped_replies": sum(len(event["rejected"]) for event in rounds),
        "evaluation": evaluations[-1] if evaluations else None,
        "detection": detection(rounds, config.federation.n_clients),
        **({} if config.privacy is None else {"privacy": describe_privacy(config, rounds)}),
    }


def detection(rounds: list[dict[str, Any]], n_clients: int) -> dict[str, Any] | None:
    """Returns the detection figures of the recorded ``rounds``, or None if nobody took part."""
    shape = (len(rounds), n_clients)
    pruned, malicious, present = (np.zeros(shape, dtype=bool) for _ in range(3))
    scores = np.full(shape, np.nan)
    for row, event in enumerate(rounds):
        for client in event["clients"]:
            column = client["client"]
            present[row, column] = True
            pruned[row, column] = client["pruned"]
            malicious[row, column] = client["malicious"] and event["attack"]
            if client["score"] is not None:
                scores[row, column] = client["score"]
    if not present.any():
        return None
    scored = None if np.isnan(scores[present]).any() else scores
    return asdict(detection_report(scored, pruned, malicious, present))


def _attack_name(config: RunConfig) -> str | None:
    """The attack's name, or None where nobody is malicious."""
    if config.attack is None or config.attack.malicious_share == 0:
        return None
    return config.attack.name
