"""A Flower strategy whose server step is any fedface aggregator."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
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
from fedface.aggregation.on_device import aggregating_on
from fedface.aggregation.screening import ClientUpdate, InvalidReply, ReplyLimits, all_finite
from fedface.modes import torch_threads
from fedface.parameters import Layout
from strategies.cohorts import exchange, sample_cohort
from strategies.records import (
    ARRAYS,
    BUFFERS,
    CONFIG,
    METRICS,
    Ticket,
    to_cohort,
    to_record,
    to_tensors,
    to_update,
)
from strategies.roster import Roster
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
    averaged apart over the trusted clients; integer counters take the largest value). ``asked``
    holds client -> node of those that got the last messages.
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
        min_clients: int | None = None,
        join_timeout: float = 120.0,
        model: GlobalModel | None = None,
        n_threads: int = 1,
        device: str = "cpu",
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
            min_clients: Clients that must be connected when the run starts, None for all. Later
                rounds go on with whoever is there.
            join_timeout: Seconds to wait for all clients at the start, and in a later round for
                ``min_valid_replies`` of them.
            model: What rules that look beyond the updates may use; its weights and buffers are
                replaced by those of the round.
            n_threads: Threads that the aggregator may use while the clients rest.
            device: Where it works on large sums: ``cpu`` (these threads) or ``cuda``.
        """
        self.model = model
        self.n_threads, self.device = n_threads, device
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
        self.min_clients = n_clients if min_clients is None else min_clients
        self.join_timeout = join_timeout
        self._weights: ArrayRecord | None = None
        self._roster: Roster | None = None
        self._cohort: tuple[int, ...] = ()
        self.asked: dict[int, int] = {}
        self._absent: dict[int, str] = {}
        self._ticket: Ticket | None = None

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
        by_client = dict(zip(self.asked, messages, strict=True))
        if adversary is not None and by_client:
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
        """Returns one train message for each client of this round's cohort that is connected.

        The cohort is drawn from all clients, connected or not: it depends on seed and round alone.

        Raises:
            TooFewClients: If fewer than ``min_clients`` are connected when the run starts.
        """
        roster = self._present(grid)
        self._weights = arrays
        self._cohort = sample_cohort(range(self.n_clients), self.n_sampled, self.seed, server_round)
        self.asked = {c: roster.nodes[c] for c in self._cohort if c in roster.nodes}
        self._absent = {c: roster.why_absent(c) for c in self._cohort if c not in roster.nodes}
        return self._messages(server_round, arrays, config, MessageType.TRAIN)

    def _present(self, grid: Grid) -> Roster:
        """Who is connected: at first asked for, later looked at."""
        if self._roster is None:
            roster = Roster(self.n_clients)
            roster.call(grid, self.min_clients, self.join_timeout)
            self._roster = roster
        else:
            self._roster.refresh(grid, self.min_valid_replies, self.join_timeout)
        return self._roster

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screens and aggregates; ``(None, ...)`` keeps the global model."""
        clients = {node: client for client, node in self.asked.items()}
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
        """Returns one evaluate message for each client that was asked in this round."""
        return self._messages(server_round, arrays, config, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the mean local loss and accuracy, weighted by images; malformed ones dropped."""
        totals = [0.0, 0.0, 0.0]
        for reply in replies:
            metrics = reply.content.get(METRICS) if reply.has_content() else None
            stale = self._ticket is not None and not self._ticket.fits(reply)
            if stale or not isinstance(metrics, MetricRecord):
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

    def screened(self, client: int, reply: Message) -> ClientUpdate:
        """Returns a reply to this round's message as a screened update.

        Raises:
            InvalidReply: If it is malformed or answers another message.
        """
        return to_update(client, reply, self.layout, self.buffers, self.limits, self._ticket)

    def summary(self) -> None:
        """Nothing is logged here: the run folder holds the resolved configuration."""

    def global_model(self, weights: Mapping[str, Tensor]) -> GlobalModel | None:
        """Returns the global model with ``weights`` and the current buffers, if there is one."""
        if self.model is None:
            return None
        return replace(self.model, weights=self.layout.flatten(weights), buffers=self.buffers)

    def _messages(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        message_type: str,
    ) -> list[Message]:
        """One message per client, all with a new ticket; the records are shared, not copied."""
        self._ticket = ticket = Ticket.of_round(server_round)
        settings = ConfigRecord({**config, "server-round": server_round})
        buffers = to_record(self.buffers)
        return [
            Message(
                RecordDict({ARRAYS: arrays, BUFFERS: buffers, CONFIG: settings}),
                node,
                message_type,
                group_id=ticket.group_id,
            )
            for node in self.asked.values()
        ]

    def _step(
        self, server_round: int, replies: Mapping[int, Message], weights: Mapping[str, Tensor]
    ) -> tuple[Aggregation | None, RoundRecord]:
        """Screens the replies and applies the aggregator to what is valid."""
        updates: list[ClientUpdate] = []
        silent = (client for client in self._cohort if client not in replies)
        rejected = {client: self._absent.get(client, "no reply in time") for client in silent}
        for client, reply in sorted(replies.items()):
            try:
                updates.append(self.screened(client, reply))
            except InvalidReply as error:
                rejected[client] = str(error)
        rejected = dict(sorted(rejected.items()))
        if len(updates) < self.min_valid_replies:
            why = f"needed {self.min_valid_replies} valid replies, got {len(updates)}"
            return None, RoundRecord(server_round, (), rejected, why)
        model = self.global_model(weights)
        cohort = to_cohort(updates, self.layout, server_round, self.seed, model)
        try:
            where = nullcontext() if self.device == "cpu" else aggregating_on(self.device)
            with torch_threads(self.n_threads), where:
                aggregation, state = self.aggregator(cohort, self.state)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            return None, RoundRecord(server_round, (), rejected, f"aggregator refused: {error}")
        if not all_finite(aggregation.update):
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
