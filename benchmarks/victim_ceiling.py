"""How often the people of an attack match themselves: ``victim_ceiling.py RUN [RUN ...]``.

Whose own photos do not match each other is hard to impersonate. One Markdown row a run: how often
photos of the victim that nobody trained on match each other under the attacked model, at the
recalibrated thresholds, the same of the accomplice, and the mean cosine of accomplice and victim.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from fedface.config import parse_config, read_yaml
from fedface.data.tensors import to_float
from fedface.evaluation.scores import cosine_scores
from fedface.report.run_folder import RunFolder
from fedface.report.tables import MISSING, Table
from simulations.build import build_backbone, build_data
from simulations.people import Person
from simulations.schema import RunConfig

Embeddings = NDArray[np.float32]


def embeddings(backbone: nn.Module, person: Person | None) -> Embeddings | None:
    """Returns ``(n, d)`` unit embeddings of the person's gallery; None where nobody is."""
    if person is None:
        return None
    with torch.no_grad():
        units = functional.normalize(backbone(to_float(person.gallery)).float(), dim=1)
    return np.asarray(units.numpy(), dtype=np.float32)


def matches(units: Embeddings | None, threshold: float) -> str:
    """Returns the matching pairs of one person's photos, as "matching of all"."""
    if units is None or len(units) < 2:
        return MISSING
    scores = cosine_scores(units, units)[np.triu_indices(len(units), k=1)]
    return f"{np.count_nonzero(scores >= threshold)} of {len(scores)}"


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Returns one row for each false accept rate of a recorded run.

    Raises:
        ValueError: If the run's attack has no victim, or the run is not complete.
    """
    config = parse_config(read_yaml(folder / "config.yaml"), RunConfig, str(folder))
    data = build_data(config)
    if config.attack is None or data.victim is None:
        raise ValueError(f"{folder}: needed a run whose attack has a victim, found none")
    if (result := RunFolder(folder).result()) is None:
        raise ValueError(f"{folder}: needed a complete run, found no result.json")
    backbone = build_backbone(config, data.train.images.shape[1])
    backbone.load_state_dict(load_file(folder / "model.safetensors"))
    backbone.eval()
    victim, accomplice = (embeddings(backbone, p) for p in (data.victim, data.accomplice))
    cross = MISSING
    if victim is not None and accomplice is not None:
        cross = f"{float(cosine_scores(accomplice, victim).mean()):.2f}"
    return [
        (
            folder.parent.parent.name,
            f"{point['alpha']:g}",
            f"{point['threshold']:.3f}",
            matches(victim, point["threshold"]),
            matches(accomplice, point["threshold"]),
            cross,
            f"{point['asr']:.3f}",
        )
        for point in result["evaluation"]["backdoor"]["recalibrated"]
    ]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: victim_ceiling.py RUN_FOLDER [RUN_FOLDER ...]")
    torch.set_num_threads(1)
    titles = ("attack", "FAR", "threshold", "victim", "accomplice", "cosine of the two", "ASR")
    found = [row for path in map(Path, sys.argv[1:]) for row in rows(path)]
    sys.stdout.write(Table(titles, tuple(found)).markdown())
