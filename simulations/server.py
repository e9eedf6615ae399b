"""The server's loop: rounds, evaluation, records and checkpoints; it can start in the middle."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite, isnan
from sys import float_info
from time import monotonic
from typing import Any

import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedface import parameters
from fedface.aggregation.global_model import GlobalModel
from fedface.aggregation.screening import shortened
from fedface.config import ConfigError
from fedface.parameters import Layout
from fedface.report.run_folder import Checkpoint, RunFolder
from simulations.build import RunData, build_backbone, malicious_clients
from simulations.coalition import Colluders, split_state
from simulations.display import Display
from simulations.evaluation import Reference, evaluate_global
from simulations.private import PrivacyWatch, server_rule
from simulations.scalars import TensorBoard
from simulations.schema import RunConfig
from strategies.cohorts import exchange
from strategies.records import to_record
from strategies.robust import RobustStrategy
from strategies.rounds import RoundRecord


class RunFailed(RuntimeError):
    """The run cannot go on; its folder keeps the last good round."""


class WorkerLost(RunFailed):
    """A worker's process was killed in the middle of a round; nothing of the round was kept."""


class Server:
    """One run's server side: the global model, the strategy and what is written down."""

    def __init__(
        self,
        config: RunConfig,
        data: RunData,
        folder: RunFolder,
        display: Display,
        device: torch.device,
    ) -> None:
        """Builds the first global model, or takes up the last checkpoint of ``folder``.

        Raises:
            ConfigError: If it is to aggregate on a GPU and there is none.
            ValueError: If the checkpoint is damaged, does not fit the model, or the backbone does
                not fit the images.
            OSError: If the folder cannot be written.
        """
        self.config = config
        self.data = data
        self.folder = folder
        self.display = display
        self.device = device
        self.malicious = malicious_clients(config)
        self.reference = Reference.of(config)
        self.backbone: nn.Module = build_backbone(config, data.train.images.shape[1]).to(device)
        self.layout = Layout.of(self.backbone)
        federation = config.federation
        if federation.aggregate_on == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "federation.aggregate_on: needed cpu, or a GPU that the server's torch can use; "
                "found cuda and no GPU"
            )
        self.privacy = PrivacyWatch(config, self.malicious)
        self.strategy = RobustStrategy(
            server_rule(config),
            self.layout,
            parameters.buffers(self.backbone),
            seed=config.seed,
            n_clients=federation.n_clients,
            n_sampled=federation.clients_per_round,
            min_valid_replies=federation.min_valid_replies,
            limits=federation.limits,
            timeout=federation.timeout,
            min_clients=federation.min_clients,
            join_timeout=federation.join_timeout,
            model=GlobalModel(
                self.layout.flatten(parameters.trainable(self.backbone)),
                self.layout,
                self.backbone,
                config.model.head,
                config.training,
                config.model.backbone.embedding_size,
                data.train.images.shape[1],
                federation.n_rounds,
            ),
            n_threads=config.engine.server_threads,
            device=config.federation.aggregate_on,
        )
        self.adversary = None
        if config.attack is not None:
            self.adversary = Colluders(config, config.attack, data, self.strategy, device)
        self.weights: dict[str, Tensor] = parameters.trainable(self.backbone)
        self.completed = 0
        checkpoint = folder.latest()
        folder.forget_after(checkpoint.server_round if checkpoint else 0)
        if checkpoint is not None:
            self._take_up(checkpoint)

    def __call__(self, grid: Grid) -> None:
        """Runs the rounds that are left.

        The round that ends a failed run gets no checkpoint, so that a resumed run tries it again.

        Raises:
            RunFailed: If too many rounds in a row had too few valid replies.
            WorkerLost: If a worker died; a new Server takes up the run at the last checkpoint.
        """
        config, failed = self.config, self._failed_in_a_row()
        with TensorBoard(self.folder.path / "tensorboard", self.completed) as board:
            for server_round in range(self.completed + 1, config.federation.n_rounds + 1):
                started = monotonic()
                if (why := self.privacy.before()) is not None:
                    self._stop(server_round, why)
                    return
                self.display.round_starts(server_round)
                self.weights, record = self.strategy.train_round(
                    server_round, self.weights, grid, self._reply, self.adversary
                )
                self._require_workers(server_round, record.rejected)
                if (why := self.privacy.exhausted(record)) is not None:
                    self._stop(server_round, why)
                    return
                self.privacy.after(record)
                event = self._round_event(record, monotonic() - started)
                if config.evaluation.local:
                    event["local"] = self._evaluate_locally(server_round, grid)
                self.folder.append(event)
                evaluation = self._evaluate(server_round)
                board.add(event, evaluation)
                failed = failed + 1 if record.kept_global else 0
                ended = failed >= config.federation.max_failed_rounds
                if not ended:
                    self.folder.save(self._checkpoint(server_round))
                self.display.round_ends(event, evaluation)
                if ended:
                    raise RunFailed(
                        f"{failed} rounds in a row kept the global model, the last because: "
                        f"{record.kept_global}; replies dropped: {_some(record.rejected)}"
                    )

    def _reply(self, client: int, reply: Message) -> None:
        """Takes note of a reply as it arrives."""
        self.privacy.heard(client, reply)
        self.display.reply(client, reply)

    def _stop(self, server_round: int, why: str) -> None:
        """Ends the run before ``server_round``: the model of the round before is its result.

        Raises:
            RunFailed: If there was no round before.
        """
        if server_round == 1:
            raise RunFailed(f"no round could be trained: {why}")
        self.folder.append({"event": "stopped", "round": server_round, "why": why})
        measured = [event["round"] for event in self.folder.events("evaluation")]
        if server_round - 1 not in measured:
            self._evaluate(server_round - 1, due=True)
        self.display.note(f"stopped before round {server_round}: {why}")

    def _require_workers(self, server_round: int, failures: Mapping[int, str]) -> None:
        """Stops when a client failed because its worker is gone: nothing of the round is kept."""
        if any(self.config.engine.lost_worker(why) for why in failures.values()):
            raise WorkerLost(
                f"a worker's process was killed in round {server_round}; replies dropped: "
                f"{_some(failures)}"
            )

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """Continues from ``checkpoint``."""
        needed = set(self.weights) | set(self.strategy.buffers)
        if set(checkpoint.model) != needed:
            raise ValueError(
                f"{self.folder.path}: the checkpoint needs the tensors of the configured backbone, "
                f"differing: {sorted(set(checkpoint.model) ^ needed)[:3]}"
            )
        self.weights = {name: checkpoint.model[name] for name in self.weights}
        self.strategy.buffers = {name: checkpoint.model[name] for name in self.strategy.buffers}
        self.strategy.state, memory = split_state(checkpoint.state)
        if self.adversary is not None:
            self.adversary.memory = memory
        self.completed = checkpoint.server_round

    def _failed_in_a_row(self) -> int:
        """How many of the last recorded rounds kept the global model, one after the other."""
        kept = [bool(event["kept_global"]) for event in self.folder.events("round")]
        return next((n for n, k in enumerate(reversed(kept)) if not k), len(kept))

    def _checkpoint(self, server_round: int) -> Checkpoint:
        model = {**self.weights, **self.strategy.buffers}
        remembered = {} if self.adversary is None else self.adversary.saved()
        return Checkpoint(server_round, model, {**self.strategy.state, **remembered})

    def _evaluate(self, server_round: int, due: bool = False) -> dict[str, Any] | None:
        """Measures the global model when it is due; a model that cannot be measured is a fact."""
        last = due or server_round == self.config.federation.n_rounds
        if not last and server_round % self.config.evaluation.every:
            return None
        parameters.load(self.backbone, {**self.weights, **self.strategy.buffers})
        event: dict[str, Any] = {"event": "evaluation", "round": server_round}
        try:
            event |= evaluate_global(
                self.config,
                self.data,
                self.backbone,
                self.device,
                server_round,
                self.reference,
                None if self.adversary is None else self.adversary.memory,
            )
        except ValueError as error:
            event["failed"] = str(error)
        self.folder.append(event)
        return event

    def _evaluate_locally(self, server_round: int, grid: Grid) -> dict[str, float] | None:
        """Asks this round's sites for the global model's loss and accuracy."""
        messages = self.strategy.configure_evaluate(
            server_round, to_record(self.weights), ConfigRecord(), grid
        )
        by_client = dict(zip(self.strategy.asked, messages, strict=True))
        replies = exchange(grid, by_client, self.config.federation.timeout)
        failed = {c: str(r.error.reason) for c, r in replies.items() if r.has_error()}
        self._require_workers(server_round, failed)
        # In the sites' order, not that of arrival: the sums must come out the same.
        ordered = [replies[client] for client in sorted(replies)]
        metrics = self.strategy.aggregate_evaluate(server_round, ordered)
        values = {k: float(str(v)) for k, v in (metrics or {}).items()}
        return values if values and all(map(isfinite, values.values())) else None

    def _round_event(self, record: RoundRecord, seconds: float) -> dict[str, Any]:
        """The facts of a round, with who was malicious (known to the simulation alone)."""
        facts = self.privacy.facts()
        private = {} if facts is None else {"privacy": facts, "loss": None}
        return {
            "event": "round",
            "round": record.server_round,
            "seconds": round(seconds, 3),
            # Absurd claims of a loss may add up to infinity; they shall not end the run.
            "loss": record.loss if record.loss is None or isfinite(record.loss) else None,
            "clients": [
                {
                    **asdict(c),
                    "score": _plain(c.score),
                    "layer_scores": {layer: _plain(s) for layer, s in c.layer_scores.items()},
                    "pruned": c.trust == 0,
                    "malicious": c.client in self.malicious,
                }
                for c in record.clients
            ],
            "attack": self._attacked(record.server_round),
            "pruned": list(record.pruned),
            "rejected": {str(client): why for client, why in record.rejected.items()},
            "kept_global": record.kept_global,
            **private,  # where there is privacy, sites say no loss
        }

    def _attacked(self, server_round: int) -> bool:
        """Whether the malicious clients attacked in this round."""
        attack = self.config.attack
        return attack is not None and attack.active(server_round, self.config.federation.n_rounds)


def _plain(score: float | None) -> float | None:
    """``score`` as JSON can carry it: NaN as None, infinity as the largest float."""
    if score is None or isnan(score):
        return None
    return max(-float_info.max, min(score, float_info.max))


def _some(rejected: Mapping[int, str], limit: int = 3) -> str:
    shown = [
        f"client {client}: {shortened(why, 300)}" for client, why in list(rejected.items())[:limit]
    ]
    more = len(rejected) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "") or "none"
