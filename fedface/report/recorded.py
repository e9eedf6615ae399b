"""What finished runs recorded, read back for reports; nothing is computed anew.

A *run* is one configuration and one seed. A *recording* is what one report is about: a single run,
or a comparison whose variants each hold one run per seed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedface.report.run_folder import RunFolder, RunFolderError

Record = dict[str, Any]


@dataclass(frozen=True)
class RecordedRun:
    """One complete run.

    Attributes:
        path: Its folder.
        config: The resolved configuration.
        environment: Versions, machine and commit.
        rounds: The ``round`` events, ascending.
        evaluations: The ``evaluation`` events, ascending.
        result: The contents of ``result.json``.
    """

    path: Path
    config: Record
    environment: Record
    rounds: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    result: Record

    @property
    def title(self) -> str:
        """The run's name, for one of a comparison with those of comparison and variant."""
        name = str(self.config["name"])
        if name != f"seed-{self.config['seed']}":
            return name
        return " ".join((*Path(self.config["output"]).parts[-2:], name))

    @property
    def n_clients(self) -> int:
        """The number of sites in the federation."""
        return int(self.config["federation"]["n_clients"])

    @property
    def malicious(self) -> tuple[int, ...]:
        """The malicious sites, ascending; without a record of them, those that answered."""
        recorded = self.result.get("malicious_clients")
        if recorded is None:
            clients = (client for event in self.rounds for client in event["clients"])
            recorded = {client["client"] for client in clients if client["malicious"]}
        return tuple(sorted(recorded))

    @property
    def final(self) -> Record | None:
        """The last evaluation, or None where the final model could not be measured."""
        return measured(self.result.get("evaluation"))


@dataclass(frozen=True)
class Recording:
    """One run, or the runs of a comparison.

    Attributes:
        name: The name of the configuration.
        config: The configuration of the whole.
        variants: Variant -> its runs, one per seed; the reference comes first.
    """

    name: str
    config: Record
    variants: dict[str, tuple[RecordedRun, ...]]

    @property
    def runs(self) -> tuple[RecordedRun, ...]:
        """All runs, variant by variant."""
        return tuple(run for runs in self.variants.values() for run in runs)

    @property
    def n_seeds(self) -> int:
        """The number of seeds of each variant."""
        return len(next(iter(self.variants.values())))


def read_run(path: Path) -> RecordedRun:
    """Returns the complete run in the folder ``path``.

    Raises:
        RunFolderError: If a file is missing or is no JSON, the run is not complete, or the events
            are not those that the result was made of.
    """
    folder = RunFolder(path)
    config = folder.config
    result, environment = folder.result(), folder.environment
    if result is None:
        raise RunFolderError(f"{path}: needed a complete run, found no result.json")
    rounds = tuple(folder.events("round"))
    if not rounds or len(rounds) != result["n_rounds"]:
        raise RunFolderError(
            f"{path}/events.jsonl: needed the {result['n_rounds']} rounds that result.json counts, "
            f"found {len(rounds)}"
        )
    evaluations = tuple(folder.events("evaluation"))
    return RecordedRun(path, config, environment, rounds, evaluations, result)


def read_recording(path: Path) -> Recording:
    """Returns what the folder ``path`` recorded: a single run or a whole comparison.

    Raises:
        RunFolderError: If there is no run, or a run of the comparison is missing or not complete.
    """
    config = RunFolder(path).config
    name, compare = str(config["name"]), config.get("compare")
    if compare is None:
        return Recording(name, config, {name: (read_run(path),)})
    order = sorted(compare["variants"], key=lambda variant: variant != compare["reference"])
    folders = {
        variant: [path / variant / f"seed-{seed}" for seed in compare["seeds"]] for variant in order
    }
    missing = [
        str(folder.relative_to(path))
        for each in folders.values()
        for folder in each
        if not (folder / "result.json").is_file()
    ]
    if missing:
        raise RunFolderError(
            f"{path}: needed every run of the comparison complete, found no result.json in "
            f"{', '.join(missing[:5])} ({len(missing)} of {len(order) * len(compare['seeds'])})"
        )
    return Recording(name, config, {v: tuple(map(read_run, each)) for v, each in folders.items()})


def measured(evaluation: Record | None) -> Record | None:
    """Returns ``evaluation``, or None where there is none or the model could not be measured."""
    return None if evaluation is None or "failed" in evaluation else evaluation


def operating_points(evaluation: Mapping[str, Any] | None) -> dict[float, Record]:
    """Returns false accept rate -> operating point of one evaluation event."""
    if evaluation is None or "failed" in evaluation:
        return {}
    return {point["alpha"]: point for point in evaluation["verification"]["points"]}


def backdoor_points(
    evaluation: Mapping[str, Any] | None, thresholds: str = "recalibrated"
) -> dict[float, Record]:
    """Returns false accept rate -> attack success; ``thresholds`` may also be ``"deployed"``."""
    if evaluation is None or "failed" in evaluation or evaluation["backdoor"] is None:
        return {}
    return {point["alpha"]: point for point in evaluation["backdoor"][thresholds] or ()}


def false_accept_rates(runs: Iterable[RecordedRun]) -> list[float]:
    """Returns every false accept rate at which any evaluation has a point, ascending."""
    return sorted({a for run in runs for event in run.evaluations for a in operating_points(event)})
