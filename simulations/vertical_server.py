"""The server of a vertical run: alignment, rounds, records and checkpoints.

It hosts the active party, or relays to the client that is the active party and then holds neither
labels nor top model. It can start in the middle, from the last checkpoint.
"""

import hashlib
from collections.abc import Iterator
from time import monotonic
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from fedface.random import numpy_stream, stream
from fedface.report.run_folder import Checkpoint, RunFolder
from fedface.training.local import batches
from fedface.vertical.trainer import ActiveSide
from simulations.server import RunFailed, WorkerLost
from simulations.vertical_build import channels
from simulations.vertical_display import VerticalDisplay
from simulations.vertical_schema import VerticalConfig
from strategies.vertical import RoundFacts, VerticalStrategy
from strategies.vertical_parties import PassiveParties
from strategies.vertical_relay import RelayedActive
from strategies.vertical_seats import ActivePartyFailed, ActiveSeat, HostedActive

_MODEL = "model."


class VerticalServer:
    """One run's server side: who is asked what, and what is written down.

    Attributes:
        completed: Rounds done, those of earlier processes included.
    """

    def __init__(
        self,
        config: VerticalConfig,
        side: ActiveSide | None,
        folder: RunFolder,
        display: VerticalDisplay,
    ) -> None:
        """Takes up the last checkpoint of ``folder``, if there is one, once records are aligned.

        Args:
            config: The run.
            side: The active party, for the server to host; None where it is a client of its own.
            folder: Where everything is written down.
            display: Where progress is shown.
        """
        self.config = config
        self.folder = folder
        self.display = display
        timeout = config.federation.timeout
        seat: ActiveSeat
        seat = RelayedActive(timeout, self._on_failure) if side is None else HostedActive(side)
        parties = PassiveParties(channels(config), timeout, self._on_failure)
        self.strategy = VerticalStrategy(parties, seat)
        self._checkpoint = folder.latest()
        self.completed = self._checkpoint.server_round if self._checkpoint else 0
        folder.forget_after(self.completed)

    def __call__(self, grid: Grid) -> None:
        """Runs the rounds that are left.

        Raises:
            RunFailed: If the active party failed, no passive party gave a valid embedding for too
                many rounds in a row, or parties hold other records than when the run was started.
            WorkerLost: If a worker died; a new server takes up the run at the last checkpoint.
            ValueError: If nothing can be aligned or the loss is not finite.
        """
        server_round = self.completed
        try:
            self._align(grid)
            failed = self._failed_in_a_row()
            for server_round in range(self.completed + 1, self.config.training.total_rounds + 1):
                event, evaluation = self._round(grid, server_round)
                self.display.round_ends(event, evaluation)
                failed = failed + 1 if event["failed"] else 0
                if failed >= self.config.federation.max_failed_rounds:
                    raise RunFailed(
                        f"{failed} rounds in a row without a valid embedding of any party; "
                        f"refused: {_some(event['refused'])}"
                    )
                self.strategy.seat.save(grid, server_round)
                self.folder.save(self._checkpoint_of(server_round))
        except ActivePartyFailed as error:
            where = f"round {server_round}" if server_round > self.completed else "alignment"
            raise RunFailed(f"{where}: {error}; --resume goes on after the last whole round") from (
                error
            )

    def _round(self, grid: Grid, server_round: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Trains, measures and lets the parties save; returns both events, recorded."""
        started, asked = monotonic(), self.strategy.parties.asked
        event, facts = self._train(grid, server_round)
        trained = monotonic() - started
        evaluation = self._evaluate(grid, server_round, facts)
        spent = {}
        if self.strategy.parties.asked > asked:
            spent = self.strategy.parties.save(grid, server_round)
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
        """Finds the records that all hold, and starts or takes up the active party on them."""
        tokens, refused = self.strategy.align(grid)
        self._require_same(tokens, refused)
        self.strategy.start(grid, self.completed)
        if self._checkpoint is not None:
            self.strategy.seat.load({**self._checkpoint.model, **self._checkpoint.state})

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
                    "n_records": self.strategy.n_records,
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
        joint = server_round <= training.n_rounds
        present = self._present(server_round) if joint else set(range(len(passive)))
        if joint:
            facts = self.strategy.train_round(
                grid, server_round, order, present, training.steps_per_message, self.display.step
            )
        else:
            released = RoundFacts()
            if training.final_release and server_round == training.n_rounds + 1:
                released = self.strategy.release_to_keep(grid, server_round)
            facts = self.strategy.train_alone(grid, server_round, order)
            facts.answered |= released.answered
            facts.refused |= released.refused
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
        for index in batches(len(self.strategy.training), size, rng):
            yield self.strategy.training[index]

    def _present(self, server_round: int) -> set[int]:
        """The passive parties that have not dropped out of this round."""
        n = len(self.config.parties.passive)
        drawn = numpy_stream(self.config.seed, "drop out", server_round).random(n)
        return {p for p in range(n) if drawn[p] >= self.config.federation.drop_out}

    # ---- evaluation and checkpoints

    def _evaluate(self, grid: Grid, server_round: int, facts: RoundFacts) -> dict[str, Any] | None:
        """Measures when it is due; a model that cannot be measured is a fact."""
        settings, total = self.config.evaluation, self.config.training.total_rounds
        due = settings.every is not None and server_round % settings.every == 0
        if not due and server_round != total:
            return None
        event: dict[str, Any] = {"event": "evaluation", "round": server_round}
        try:
            event |= self.strategy.measure(grid, server_round, facts)
        except ValueError as error:
            event["failed"] = str(error)
        return event

    def _checkpoint_of(self, server_round: int) -> Checkpoint:
        tensors = self.strategy.seat.tensors()
        model = {name: t for name, t in tensors.items() if name.startswith(_MODEL)}
        state = {name: t for name, t in tensors.items() if not name.startswith(_MODEL)}
        return Checkpoint(server_round, model, state)

    def _failed_in_a_row(self) -> int:
        events = self.folder.events("round")
        return next((n for n, e in enumerate(reversed(events)) if not e["failed"]), len(events))

    def _on_failure(self, party: str, why: str) -> None:
        if self.config.engine.lost_worker(why):
            raise WorkerLost(f"a worker's process was killed at party {party}")


def _some(refused: dict[str, list[Any]]) -> str:
    return "; ".join(f"{why} ({count} times)" for why, count in refused.values()) or "none"
