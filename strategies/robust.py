"""A Flower strategy whose server step is any fedface aggregator."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedface.aggregation.cohort import Aggregation, Aggregator, State
from fedface.aggregation.global_model import GlobalModel
from fedface.aggregation.screening import ClientUpdate, InvalidReply, ReplyLimits
from fedface.parameters import Layout
from strategies.cohorts import exchange, roll_call, sample_cohort
from strategies.records import (
    ARRAYS,
    BUFFERS,
    CONFIG,
    METRICS,
    to_cohort,
    to_record,
    to_tensors,
    to_update,
)
from strategies.rounds import RoundRecord, client_records


class Adversary(Protocol):
    """Who stands between the sites and the server in a simulated attack: client id -> message."""

    def brief(self, server_round: int, messages: dict[int, Message]) -> dict[int, Message]:
        """Returns the messages as the sites get them."""
        ...

    def tamper(self, server_round: int, replies: dict[int, Message]) -> dict[int, Message]:
        """Returns the replies as the server gets them."""
        ...


class RobustStrategy(Strategy):
    """Samples cohorts by partition id, screens replies and applies one aggregator.

    The global model is ``weights`` (trainable parameters) and ``buffers`` (batch statistics,
    averaged apart over the trusted clients; integer counters take the largest value).
    """

    def __init__(
        self,
        aggregator: Aggregator,
        layout: Layout,
        buffers: Mapping[str, Tensor],
        *,
        seed: int,
        n_clients: int,
        n_sampled: int | None = None,
        min_valid_replies: int = 2,
        limits: ReplyLimits | None = None,
        timeout: float = 3600.0,
        model: GlobalModel | None = None,
        n_threads: int = 1,
    ) -> None:
        """Keeps the run's settings; nothing is sent before the first round.

        Args:
            aggregator: The server step.
            layout: Names and shapes of the trainable parameters.
            buffers: The global model's first buffers, by name.
            seed: The run's seed.
            n_clients: Clients in the federation, ids ``0..n_clients - 1``.
            n_sampled: Clients asked each round, None for all.
            min_valid_replies: Below this many valid replies the global model is kept.
            limits: What a client may claim.
            timeout: Seconds to wait for a round's replies.
            model: What rules that look beyond the updates may use; its weights and buffers are
                replaced by those of the round.
            n_threads: Threads that the aggregator may use while the clients rest.
        """
        self.model = model
        self.n_threads = n_threads
        self.aggregator = aggregator
        self.layout = layout
        self.buffers = dict(buffers)
        self.state: State = {}
        self.seed = seed
        self.n_clients = n_clients
        self.n_sampled = n_sampled
        self.min_valid_replies = min_valid_replies
        self.limits = limits or ReplyLimits()
        self.timeout = timeout
        self.last_round: RoundRecord | None = None
        self._weights: ArrayRecord | None = None
        self._roster: dict[int, int] = {}
        self._cohort: tuple[int, ...] = ()

    def train_round(
        self,
        server_round: int,
        weights: Mapping[str, Tensor],
        grid: Grid,
        on_reply: Callable[[int, Message], None] | None = None,
        adversary: Adversary | None = None,
    ) -> tuple[dict[str, Tensor], RoundRecord]:
        """Runs one whole training round; returns the new weights and what happened."""
        messages = self.configure_train(server_round, to_record(weights), ConfigRecord(), grid)
        by_client = dict(zip(self._cohort, messages, strict=True))
        if adversary is not None:
            by_client = adversary.brief(server_round, by_client)
        replies = exchange(grid, by_client, self.timeout, on_reply)
        if adversary is not None:
            replies = adversary.tamper(server_round, replies)
        aggregation, record = self._step(server_round, replies, weights)
        self.last_round = record
        if aggregation is None:
            return dict(weights), record
        new = self.layout.flatten(weights) + aggregation.update
        return {name: v.clone() for name, v in self.layout.unflatten(new).items()}, record

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Returns one train message for each client of this round's cohort."""
        if not self._roster:
            self._roster = roll_call(grid, self.n_clients)
        self._weights = arrays
        self._cohort = sample_cohort(tuple(self._roster), self.n_sampled, self.seed, server_round)
        return self._messages(self._cohort, server_round, arrays, config, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screens and aggregates; ``(None, ...)`` keeps the global model."""
        clients = {self._roster[client]: client for client in self._cohort}
        known = {
            clients[reply.metadata.src_node_id]: reply
            for reply in replies
            if reply.metadata.src_node_id in clients
        }
        weights = {} if self._weights is None else to_tensors(self._weights)
        aggregation, self.last_round = self._step(server_round, known, weights)
        metrics = MetricRecord({"n-valid": len(self.last_round.clients)})
        if aggregation is None or self._weights is None:
            return None, metrics
        new = self.layout.flatten(weights) + aggregation.update
        return to_record(self.layout.unflatten(new)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Returns one evaluate message for each client of the last cohort."""
        return self._messages(self._cohort, server_round, arrays, config, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the mean local loss and accuracy, weighted by images; malformed ones dropped."""
        totals = [0.0, 0.0, 0.0]
        for reply in replies:
            metrics = reply.content.get(METRICS) if reply.has_content() else None
            if not isinstance(metrics, MetricRecord):
                continue
            n, loss, accuracy = (metrics.get(k) for k in ("num-examples", "loss", "accuracy"))
            if (
                isinstance(n, int)
                and 0 < n <= self.limits.max_examples
                and isinstance(loss, float)
                and isinstance(accuracy, float)
                and isfinite(loss)
                and 0 <= accuracy <= 1
            ):
                totals = [totals[0] + n, totals[1] + n * loss, totals[2] + n * accuracy]
        if not totals[0]:
            return None
        return MetricRecord({"loss": totals[1] / totals[0], "accuracy": totals[2] / totals[0]})

    def summary(self) -> None:
        """Nothing is logged here: the run folder holds the resolved configuration."""

    def global_model(self, weights: Mapping[str, Tensor]) -> GlobalModel | None:
        """Returns the global model with ``weights`` and the current buffers, if there is one."""
        if self.model is None:
            return None
        return replace(self.model, weights=self.layout.flatten(weights), buffers=self.buffers)

    def _messages(
        self,
        cohort: Iterable[int],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        message_type: str,
    ) -> list[Message]:
        """One message per client; the records are shared, not copied."""
        settings = ConfigRecord({**config, "server-round": server_round})
        buffers = to_record(self.buffers)
        return [
            Message(
                RecordDict({ARRAYS: arrays, BUFFERS: buffers, CONFIG: settings}),
                self._roster[client],
                message_type,
                group_id=str(server_round),
            )
            for client in cohort
        ]

    def _step(
        self, server_round: int, replies: Mapping[int, Message], weights: Mapping[str, Tensor]
    ) -> tuple[Aggregation | None, RoundRecord]:
        """Screens the replies and applies the aggregator to what is valid."""
        updates: list[ClientUpdate] = []
        rejected = {c: "no reply in time" for c in self._cohort if c not in replies}
        for client, reply in sorted(replies.items()):
            try:
                updates.append(to_update(client, reply, self.layout, self.buffers, self.limits))
            except InvalidReply as error:
                rejected[client] = str(error)
        rejected = dict(sorted(rejected.items()))
        if len(updates) < self.min_valid_replies:
            why = f"needed {self.min_valid_replies} valid replies, got {len(updates)}"
            return None, RoundRecord(server_round, (), rejected, why)
        model = self.global_model(weights)
        cohort = to_cohort(updates, self.layout, server_round, self.seed, model)
        try:
            with threads(self.n_threads):
                aggregation, state = self.aggregator(cohort, self.state)
        except ValueError as error:
            return None, RoundRecord(server_round, (), rejected, f"aggregator refused: {error}")
        if not torch.isfinite(aggregation.update).all():
            why = "aggregated update is not finite"
            return None, RoundRecord(server_round, (), rejected, why)
        self.state = state
        self._merge_buffers(updates, aggregation.trust)
        return aggregation, RoundRecord(
            server_round, client_records(cohort, updates, aggregation), rejected
        )

    def _merge_buffers(self, updates: list[ClientUpdate], trust: Tensor) -> None:
        """Averages floating-point buffers over the trusted clients; counters take the maximum."""
        for name, old in self.buffers.items():
            values = torch.stack([update.buffers[name] for update in updates])
            if old.is_floating_point():
                mean = torch.tensordot(trust.to(torch.float64), values.to(torch.float64), dims=1)
                self.buffers[name] = mean.to(old.dtype)
            else:
                self.buffers[name] = values[trust > 0].amax(dim=0)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Lets torch use ``n`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
