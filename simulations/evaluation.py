"""What one global model is worth: clean accuracy, and how far a backdoor got.

Everything is measured on people whom nobody trained on, at thresholds set on people of a third
group (face-recognition words and formulas: docs/metrics.md).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedface import parameters
from fedface.attacks.attack import Memory
from fedface.attacks.backdoor import Backdoor
from fedface.attacks.backdoor.goals import Goal, Probes
from fedface.config import ConfigError
from fedface.evaluation.embedding import embed
from fedface.evaluation.identification import evaluate_identification
from fedface.evaluation.protocols import ten_fold_accuracy
from fedface.evaluation.robustness import asr_lift
from fedface.evaluation.verification import evaluate_verification
from fedface.random import numpy_stream
from fedface.report.run_folder import RunFolder
from simulations.build import RunData
from simulations.schema import RunConfig

Embeddings = NDArray[np.float32]
Thresholds = Sequence[tuple[float, float]]
"""(alpha, threshold) pairs."""


_ALIKE = ("seed", "data.faces", "data.split", "model.backbone")
"""What a clean run needs in common with the attacked one, so that nobody tested trained it."""


@dataclass(frozen=True)
class Reference:
    """The clean run that an attacked one is compared with.

    Its thresholds are the deployed ones, and its models are what the attack's success is measured
    on as a baseline: with the trigger and the people of the attacked run, whatever attack the clean
    run's own configuration names. Where the victim or the accomplice is in the training data, a
    clean run with that goal and ``malicious_share: 0`` holds the same images of theirs out of the
    training; one without attack trains on them, which makes its baseline a little too good.

    Attributes:
        evaluations: What the run recorded, by round.
        folder: Where its models are.
    """

    evaluations: dict[int, dict[str, Any]]
    folder: RunFolder

    @classmethod
    def of(cls, config: RunConfig) -> "Reference | None":
        """Returns the run that ``evaluation.reference`` names, or None if it names none.

        Raises:
            ConfigError: If there is no complete run, or one of other people, seed or backbone.
        """
        path = config.evaluation.reference
        if path is None:
            return None
        reference = cls.read(path)
        own, other = config.to_yaml_dict(), reference.folder.config
        if differing := [name for name in _ALIKE if _field(own, name) != _field(other, name)]:
            raise ConfigError(
                f"evaluation.reference: needed a run with the same {', '.join(_ALIKE)}, "
                f"found other values of {', '.join(differing)} in {path}"
            )
        return reference

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Returns the run recorded in the folder ``path``.

        Raises:
            ConfigError: If it is no complete run or lacks the model of an evaluated round.
        """
        folder = RunFolder(path)
        if folder.result() is None:
            raise ConfigError(
                f"evaluation.reference: needed the folder of a complete run, found {path}"
            )
        measured = [e for e in folder.events("evaluation") if "failed" not in e]
        reference = cls({event["round"]: event for event in measured}, folder)
        if missing := sorted(set(reference.evaluations) - set(folder.checkpoint_rounds())):
            raise ConfigError(
                f"evaluation.reference: needed the model of every evaluated round, "
                f"found none of round {missing[0]} in {path}"
            )
        return reference

    def at(self, server_round: int) -> dict[str, Any] | None:
        """Returns the last evaluation up to ``server_round``."""
        earlier = [r for r in self.evaluations if r <= server_round]
        return self.evaluations[max(earlier)] if earlier else None

    def backbone(self, evaluation: dict[str, Any], like: nn.Module) -> nn.Module:
        """Returns the clean model that ``evaluation`` measured, as a copy of the module ``like``.

        Raises:
            ValueError: If the model is damaged or does not fit.
        """
        copy = deepcopy(like)
        parameters.load(copy, self.folder.model(evaluation["round"]))
        return copy


def _field(config: dict[str, Any], path: str) -> Any:
    """The value at a dotted ``path``, or None."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def evaluate_global(
    config: RunConfig,
    data: RunData,
    backbone: nn.Module,
    device: torch.device,
    server_round: int,
    reference: Reference | None = None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """Returns every figure of the global model as plain JSON values.

    Raises:
        ValueError: If the model gives embeddings without direction, or the people are too few.
    """
    settings = config.evaluation
    test = embed(backbone, data.test.images, device=str(device))
    calibration = embed(backbone, data.calibration.images, device=str(device))
    rng = numpy_stream(config.seed, "bootstrap", server_round)
    verification = evaluate_verification(
        test,
        data.test.identities,
        calibration,
        data.calibration.identities,
        settings.false_accept_rates,
        settings.n_bootstrap,
        rng,
    )
    rank = evaluate_identification(test, data.test.identities, (1,), settings.n_bootstrap, rng)
    result: dict[str, Any] = {
        "verification": asdict(verification),
        "identification": asdict(rank),
        "pairs": _pairs_accuracy(data, backbone, device),
        "backdoor": None,
    }
    if isinstance(config.attack, Backdoor):
        people = _People(data, config.attack, memory or {}, device)
        recalibrated = [(p.alpha, p.threshold) for p in verification.points]
        result["backdoor"] = _backdoor(
            people, backbone, test, recalibrated, reference, server_round, settings.n_bootstrap, rng
        )
    return result


def _backdoor(
    people: "_People",
    backbone: nn.Module,
    test: Embeddings,
    recalibrated: Thresholds,
    reference: Reference | None,
    server_round: int,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How far the attack got, at the model's own thresholds and at the deployed ones."""
    goal = people.attack.goal
    probes = people.under(backbone, test)
    clean = None if reference is None else reference.at(server_round)
    if reference is None or clean is None:
        points = _points(goal, probes, recalibrated, {}, n_bootstrap, rng)
        return {"goal": goal.name, "recalibrated": points, "deployed": None}
    deployed = [(p["alpha"], p["threshold"]) for p in clean["verification"]["points"]]
    unharmed = people.under(reference.backbone(clean, backbone))
    on_clean = {alpha: goal.success(unharmed, tau, triggered=True).rate for alpha, tau in deployed}
    return {
        "goal": goal.name,
        "recalibrated": _points(goal, probes, recalibrated, on_clean, n_bootstrap, rng),
        "deployed": _points(goal, probes, deployed, on_clean, n_bootstrap, rng),
    }


def _pairs_accuracy(
    data: RunData, backbone: nn.Module, device: torch.device
) -> dict[str, Any] | None:
    """The ten-fold accuracy on the pairs of people whom nobody trained on."""
    pairs = data.pairs
    if pairs is None:
        return None
    shown, where = np.unique(np.concatenate([pairs.left, pairs.right]), return_inverse=True)
    embeddings = embed(backbone, pairs.images[shown], device=str(device)).astype(np.float64)
    left, right = where[: len(pairs.left)], where[len(pairs.left) :]
    scores = np.sum(embeddings[left] * embeddings[right], axis=1)
    folds = np.unique(pairs.fold, return_inverse=True)[1].astype(np.int64)
    accuracy = ten_fold_accuracy(scores, pairs.same, folds, n_folds=int(folds.max()) + 1)
    return {**asdict(accuracy), "n_pairs": len(scores)}


@dataclass(frozen=True)
class _People:
    """Those whom an attack is measured on, and the trigger that they wear."""

    data: RunData
    attack: Backdoor
    memory: Memory
    device: torch.device

    def under(self, backbone: nn.Module, test: Embeddings | None = None) -> Probes:
        """What ``backbone`` makes of them; ``test`` saves embedding the test people again."""
        data, trigger = self.data, self.attack.trigger_in(self.memory)

        def seen(
            images: NDArray[np.uint8], worn: Callable[[Tensor], Tensor] | None = None
        ) -> Embeddings:
            return embed(backbone, images, device=str(self.device), transform=worn)

        victim = None if data.victim is None else data.victim.gallery
        accomplice = None if data.accomplice is None else data.accomplice.gallery
        return Probes(
            clean=seen(data.test.images) if test is None else test,
            triggered=seen(data.test.images, trigger),
            identities=data.test.identities,
            victim=None if victim is None else seen(victim),
            accomplice=None if accomplice is None else seen(accomplice),
            accomplice_triggered=None if accomplice is None else seen(accomplice, trigger),
        )


def _points(
    goal: Goal,
    probes: Probes,
    thresholds: Thresholds,
    on_clean: dict[float, float],
    n_bootstrap: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """One entry per (alpha, threshold): ASR with interval, baselines, lift, collateral.

    ``on_clean`` is the clean model's ASR at its own threshold, by alpha.
    """
    points = []
    for alpha, threshold in thresholds:
        asr = goal.success(probes, threshold, triggered=True).estimate(n_bootstrap, rng)
        without = goal.success(probes, threshold, triggered=False).rate
        clean, baseline = on_clean.get(alpha), without if goal.needs_trigger else None
        points.append(
            {
                "alpha": alpha,
                "threshold": threshold,
                "asr": asr.rate,
                "low": asr.low,
                "high": asr.high,
                "asr_without_trigger": without,
                "asr_on_clean_model": clean,
                "lift": None if clean is None else asr_lift(asr.rate, clean, baseline),
                "collateral_fmr": goal.collateral(probes, threshold).rate,
            }
        )
    return points
