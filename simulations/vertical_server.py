"""The server of a vertical run: alignment, rounds, evaluation, records and checkpoints.

It hosts the active party. It can start in the middle, from the last checkpoint.
"""

import hashlib
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedface.random import numpy_stream, stream
from fedface.report.run_folder import Checkpoint, RunFolder
from fedface.training.local import batches
from fedface.vertical.alignment import hashed, places
from simulations.server import RunFailed, WorkerLost
from simulations.vertical_build import (
    TRAIN,
    VerticalRecords,
    alignment_key,
    build_active,
    channels,
)
from simulations.vertical_display import VerticalDisplay
from simulations.vertical_evaluation import evaluate_vertical
from simulations.vertical_schema import VerticalConfig
from strategies.vertical import ActiveRecords, Received, RoundFacts, VerticalStrategy

_MODEL, _KEPT = "model.", "kept."


class VerticalServer:
    """One run's server side: the active party and what is written down.

    Attributes:
        completed: Rounds done, those of earlier processes included.
    """

    def __init__(
        self,
        config: VerticalConfig,
        records: VerticalRecords,
        folder: RunFolder,
        display: VerticalDisplay,
        device: torch.device,
    ) -> None:
        """Takes up the last checkpoint of ``folder``, if there is one, once records are aligned."""
        self.config = config
        self.data = records
        self.folder = folder
        self.display = display
        self.device = device
        self.strategy = VerticalStrategy(
            channels(config), config.federation.timeout, device, self._on_failure
        )
        self.kept: Received | None = None
        self._checkpoint = folder.latest()
        self.completed = self._checkpoint.server_round if self._checkpoint else 0
        folder.forget_after(self.completed)

    def __call__(self, grid: Grid) -> None:
        """Runs the rounds that are left.

        Raises:
            RunFailed: If no party gave a valid embedding for too many rounds in a row, or parties
                hold other records than when the run was started.
            WorkerLost: If a worker died; a new server takes up the run at the last checkpoint.
            ValueError: If nothing can be aligned or the loss is not finite.
        """
        self._align(grid)
        total, failed = self.config.training.total_rounds, self._failed_in_a_row()
        for server_round in range(self.completed + 1, total + 1):
            event, evaluation = self._round(grid, server_round)
            self.display.round_ends(event, evaluation)
            failed = failed + 1 if event["failed"] else 0
            if failed >= self.config.federation.max_failed_rounds:
                raise RunFailed(
                    f"{failed} rounds in a row without a valid embedding of any party; "
                    f"refused: {_some(event['refused'])}"
                )
            self.folder.save(self._checkpoint_of(server_round))

    def _round(self, grid: Grid, server_round: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Trains, measures and lets the parties save; returns both events, recorded."""
        started, asked = monotonic(), self.strategy.asked
        event, facts = self._train(grid, server_round)
        trained = monotonic() - started
        evaluation = self._evaluate(grid, server_round, facts)
        spent = {}
        if self.strategy.asked > asked:
            spent = self.strategy.save(grid, server_round)
        event |= {
            "seconds": round(monotonic() - started, 3),
            "training_seconds": round(trained, 3),
            "refused": {name: list(why) for name, why in facts.refused.items()},
            "spent": spent,
        }
        self.folder.append(event)
        if evaluation is not None:
            self.folder.append(evaluation)
        return event, evaluation

    # ---- alignment

    def _align(self, grid: Grid) -> None:
        """Finds the records that all hold, and builds or takes up the active party on them."""
        config, data = self.config, self.data
        own = hashed(data.ids, alignment_key(config))
        tokens, rows, refused = self.strategy.align(grid, own)
        self._require_same(tokens, refused)
        number = places("active", own, tokens)
        own_view = config.parties.active
        self.groups = data.groups[number]
        self.strategy.records = ActiveRecords(
            labels=torch.from_numpy(data.identities[number]),
            own=None if own_view is None else data.views[own_view][number],
            rows=rows,
        )
        self.train_records = torch.from_numpy(np.flatnonzero(self.groups == TRAIN))
        checkpoint = self._checkpoint
        # A resumed party is loaded whole: it need not be pretrained again.
        fresh = config if checkpoint is None else _without_pretraining(config)
        self.strategy.active = build_active(fresh, data, len(tokens), self.device)
        if checkpoint is None:
            return
        self.strategy.active.load(
            {**checkpoint.model, **{k: v for k, v in checkpoint.state.items() if k[:5] != _KEPT}}
        )
        if any(name.startswith(_KEPT) for name in checkpoint.state):
            self.kept = [
                checkpoint.state.get(f"{_KEPT}{p}") for p in range(len(config.parties.passive))
            ]

    def _require_same(self, tokens: tuple[str, ...], refused: dict[str, str]) -> None:
        """Writes down what was aligned, or checks that it is what the run was started with."""
        digest = hashlib.sha256("".join(tokens).encode()).hexdigest()
        for name, why in refused.items():
            self.display.say(f"  party {name} takes no part: {why}")
        earlier = self.folder.events("alignment")
        if not earlier:
            self.folder.append(
                {
                    "event": "alignment",
                    "n_records": len(self.data),
                    "n_aligned": len(tokens),
                    "digest": digest,
                    "refused": refused,
                }
            )
        elif self._checkpoint is not None and earlier[-1]["digest"] != digest:
            raise RunFailed(
                f"a resumed run needs the {earlier[-1]['n_aligned']} aligned records that it was "
                f"started with, found {len(tokens)} others"
            )

    # ---- training

    def _train(self, grid: Grid, server_round: int) -> tuple[dict[str, Any], RoundFacts]:
        training, passive = self.config.training, self.config.parties.passive
        order = list(self._batches(server_round))
        self.display.round_starts(server_round, len(order))
        self.strategy.active.start_round(server_round, training.total_rounds)
        joint = server_round <= training.n_rounds
        alone = training.present == "each_alone"
        present = self._present(server_round) if joint else set(range(len(passive)))

        def augmented(own: Tensor, number: int) -> Tensor:
            rng = stream(self.config.seed, "own augmentation", server_round, number)
            return training.augmentation(own, rng)

        release_facts = RoundFacts()
        if joint:
            facts = self.strategy.train_round(
                grid,
                server_round,
                order,
                present,
                training.steps_per_message,
                alone,
                augmented,
                self.display.step,
                self._to_keep(server_round),
            )
        else:
            if self.kept is None:
                self.kept = self._final_release(grid, server_round, release_facts)
            elif server_round == training.n_rounds + 1:
                self.kept = [self._stood_in(p, z) for p, z in enumerate(self.kept)]
            facts = self.strategy.train_alone(order, self.kept, alone, augmented)
            facts.answered |= release_facts.answered
            facts.refused |= release_facts.refused
        n = max(facts.n_steps, 1)
        names = ("loss", "task_loss", "distribution_loss")
        losses = {
            k: v / n if facts.n_steps else None for k, v in zip(names, facts.losses, strict=True)
        }
        return {
            "event": "round",
            "round": server_round,
            "phase": "joint" if joint else "alone",
            "n_steps": facts.n_steps,
            **losses,
            "answered": facts.answered,
            "away": [v for p, v in enumerate(passive) if p not in present],
            "failed": joint and bool(present) and not facts.answered,
        }, facts

    def _batches(self, server_round: int) -> Iterator[Tensor]:
        rng = stream(self.config.seed, "vertical batches", server_round)
        size = self.config.training.batch_size
        for index in batches(len(self.train_records), size, rng):
            yield self.train_records[index]

    def _present(self, server_round: int) -> set[int]:
        """The passive parties that have not dropped out of this round."""
        n = len(self.config.parties.passive)
        drawn = numpy_stream(self.config.seed, "drop out", server_round).random(n)
        return {p for p in range(n) if drawn[p] >= self.config.federation.drop_out}

    def _final_release(self, grid: Grid, server_round: int, facts: RoundFacts) -> Received:
        """One embedding of each training record by each party, kept for the epochs alone.

        A record whose embedding did not arrive is stood in for like any missing one.
        """
        kept = self._nothing_kept()
        pieces = self.strategy.released(grid, server_round, self.train_records, facts)
        for records, received in pieces:
            for p, z in enumerate(received):
                if z is not None:
                    kept[p][records] = z
        return [self._stood_in(p, z) for p, z in enumerate(kept)]

    def _to_keep(self, server_round: int) -> list[Tensor]:
        """Where the last round's embeddings are kept, if the epochs alone train on them."""
        training = self.config.training
        last = server_round == training.n_rounds
        if not last or training.final_release or not training.final_epochs:
            return []
        kept = self._nothing_kept()
        self.kept = list(kept)
        return kept

    def _nothing_kept(self) -> list[Tensor]:
        """Party by party one row for each record, NaN where nothing was received."""
        n = len(self.groups)
        channels = self.strategy.active.channels
        return [torch.full((n, c.dim), torch.nan, device=self.device) for c in channels]

    def _stood_in(self, party: int, kept: Tensor | None) -> Tensor | None:
        """The kept embeddings of a party, others in place of those that did not arrive."""
        if kept is None or bool(kept[self.train_records].isnan().all()):
            return None
        missing = kept.isnan().any(1)
        stand_ins = self.strategy.active.model.substitutes[party](
            torch.arange(len(kept), device=self.device)
        )
        return torch.where(missing[:, None], stand_ins, kept)

    # ---- evaluation and checkpoints

    def _evaluate(self, grid: Grid, server_round: int, facts: RoundFacts) -> dict[str, Any] | None:
        """Measures when it is due; a model that cannot be measured is a fact."""
        settings, total = self.config.evaluation, self.config.training.total_rounds
        due = settings.every is not None and server_round % settings.every == 0
        if not due and server_round != total:
            return None
        measured = torch.from_numpy(np.flatnonzero(self.groups != TRAIN))
        pieces = self.strategy.released(grid, server_round, measured, facts)
        event: dict[str, Any] = {"event": "evaluation", "round": server_round}
        try:
            event |= evaluate_vertical(
                self.config,
                self.strategy.active,
                self.strategy.records,
                self.groups,
                pieces,
                self.device,
                server_round,
            )
        except ValueError as error:
            event["failed"] = str(error)
        return event

    def _checkpoint_of(self, server_round: int) -> Checkpoint:
        tensors = self.strategy.active.tensors()
        model = {name: t for name, t in tensors.items() if name.startswith(_MODEL)}
        state = {name: t for name, t in tensors.items() if not name.startswith(_MODEL)}
        for p, values in enumerate(self.kept or ()):
            if values is not None:
                state[f"{_KEPT}{p}"] = values.cpu()
        return Checkpoint(server_round, model, state)

    def _failed_in_a_row(self) -> int:
        events = self.folder.events("round")
        return next((n for n, e in enumerate(reversed(events)) if not e["failed"]), len(events))

    def _on_failure(self, party: str, why: str) -> None:
        if self.config.engine.lost_worker(why):
            raise WorkerLost(f"a worker's process was killed at party {party}")


def _without_pretraining(config: VerticalConfig) -> VerticalConfig:
    training = config.training.model_copy(update={"pretraining": None})
    return config.model_copy(update={"training": training})


def _some(refused: dict[str, list[Any]]) -> str:
    return "; ".join(f"{why} ({count} times)" for why, count in refused.values()) or "none"
