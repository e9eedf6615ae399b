"""The server's side of the resident engine: a grid over long-lived Ray workers."""

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from math import inf, prod
from time import monotonic
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict

from clients.arrays import held_record
from simulations.engine.cohort_memory import CohortMemory, Row
from simulations.engine.costs import ClientCosts, bundle_size
from simulations.engine.local_grid import RAISED, LocalGrid, stamped
from simulations.engine.resident_worker import Answer, Work, last_line, read, total
from simulations.engine.workers import EngineFailed

WAIT_SECONDS = 0.2
"""The longest that a pull waits for the first reply."""

BROADCAST_FROM = 1 << 16
"""Bytes from which arrays go through the object store, not with each message."""

TRIES = 2
"""How often a client is tried whose worker dies."""


@dataclass
class Task:
    """One message on its way."""

    message: Message
    records: dict[str, Any]
    broadcast: dict[str, Any]
    dim: int
    tries: int = 0
    row: Row | None = None


@dataclass(frozen=True)
class Known:
    """What all messages with the same array record have in common.

    Attributes:
        dim: How many numbers it has if all are float32, else zero.
        reference: Its values in the object store, or None where it goes with each message.
    """

    dim: int
    reference: Any


@dataclass
class Worker:
    """A Ray actor, and what it was given: (message ids, reference to the answers), in order."""

    actor: Any
    queue: deque[tuple[tuple[str, ...], Any]] = field(default_factory=deque)


class ResidentGrid(LocalGrid):
    """Messages are given out to idle workers, those of the slowest clients first.

    A worker that dies is replaced. Its client is tried once more, then it failed; where it was at
    a bundle of small ones, each of them is tried once more, alone. A node that gets
    a new message while an older one is unanswered is no longer waited for: the older one is
    dropped, and a worker that is at it is replaced.
    """

    def __init__(self, ray: Any, start_worker: Callable[[], Any], n_workers: int, n_clients: int):
        """Starts the workers.

        Args:
            ray: The module, initialised.
            start_worker: Returns a new Ray actor of a ClientWorker.
            n_workers: How many there are at any time.
            n_clients: Nodes, one for each partition.
        """
        super().__init__(n_clients)
        self.costs = ClientCosts()
        self.memory: CohortMemory | None = None
        self._ray = ray
        self._start_worker = start_worker
        self._workers = [Worker(start_worker()) for _ in range(n_workers)]
        self._tasks: dict[str, Task] = {}
        self._waiting: dict[str, Task] = {}
        self._finished: dict[str, Message] = {}
        self._unanswered: dict[int, str] = {}
        self._known: dict[int, Known] = {}
        self._deaths_in_a_row = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Takes the messages; returns their ids."""
        new = stamped(messages)
        for message_id, message in new.items():
            node = message.metadata.dst_node_id
            if node not in self.contexts:
                raise ValueError(f"node ids are 0..{len(self.contexts) - 1}, got {node}")
            if (older := self._unanswered.pop(node, None)) is not None:
                self._abandon(older)
            self._unanswered[node] = message_id
            self._tasks[message_id] = self._waiting[message_id] = self._task(message)
        # What is waiting is not measured meanwhile: the order holds until more comes.
        by_cost = sorted(self._waiting.items(), key=lambda item: -self._expected(item[1]))
        self._waiting = dict(by_cost)
        return list(new)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there; waits a moment for the first of them."""
        wanted = list(message_ids)
        if not any(i in self._finished for i in wanted):
            self._give_out()
            self._collect(WAIT_SECONDS)
        self._give_out()
        return [self._finished.pop(i) for i in wanted if i in self._finished]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Returns the replies that came within ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or monotonic() < deadline):
            replies += self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        return replies

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            self._ray.kill(worker.actor)

    # ---- giving out

    def _task(self, message: Message) -> Task:
        """What is sent of a message; large array records are put into the object store once."""
        task = Task(message, {}, {}, 0)
        for name, record in message.content.items():
            known = self._know(record) if isinstance(record, ArrayRecord) else Known(0, None)
            if known.reference is None:
                task.records[name] = record
            else:
                task.broadcast[name] = known.reference
            task.dim = max(task.dim, known.dim)
        if task.dim:
            task.row = self._row(task.dim)
        return task

    def _row(self, dim: int) -> Row:
        """A free row, in the order of the messages; of a new matrix where the old is of no use."""
        memory = self.memory
        if memory is None or memory.is_full or memory.matrix.shape[1] != dim:
            self.memory = memory = CohortMemory(len(self.contexts), dim)
        return memory.row()

    def _know(self, record: ArrayRecord) -> Known:
        """What is known of a record; its values are dropped from the object store with it."""
        key = id(record)
        if key not in self._known:
            reference = None
            if _bytes(record) >= BROADCAST_FROM:
                reference = self._ray.put({name: read(array) for name, array in record.items()})
            self._known[key] = Known(total(record), reference)
            weakref.finalize(record, self._known.pop, key, None).atexit = False
        return self._known[key]

    def _give_out(self) -> None:
        """Keeps every worker busy; one in advance while there is much to do."""
        while self._waiting:
            depth = 2 if len(self._waiting) > len(self._workers) else 1
            worker = min(self._workers, key=lambda worker: len(worker.queue))
            if len(worker.queue) >= depth:
                return
            bundle = self._bundle()
            works = [self._work(self._waiting.pop(message_id)) for message_id in bundle]
            worker.queue.append((bundle, worker.actor.answer.remote(works)))

    def _bundle(self) -> tuple[str, ...]:
        """What one worker gets next; who is tried once more travels alone."""
        waiting = self._waiting.values()
        seconds = (inf if task.tries else self._expected(task) for task in waiting)
        return tuple(islice(self._waiting, bundle_size(seconds, len(waiting), len(self._workers))))

    def _expected(self, task: Task) -> float:
        metadata = task.message.metadata
        return self.costs.expected(metadata.dst_node_id, metadata.message_type)

    def _work(self, task: Task) -> Work:
        return Work(
            task.message.metadata,
            task.records,
            task.broadcast,
            self.contexts[task.message.metadata.dst_node_id],
            task.dim,
            None if task.row is None else task.row.place,
            0 if task.row is None else task.row.index,
        )

    # ---- taking back

    def _collect(self, timeout: float) -> None:
        """Waits for a first answer, and takes it."""
        firsts = {worker.queue[0][1]: worker for worker in self._workers if worker.queue}
        if firsts:
            ready, _ = self._ray.wait(list(firsts), num_returns=1, timeout=timeout)
            for reference in ready:
                self._take(firsts[reference])

    def _take(self, worker: Worker) -> None:
        """Takes the first answer of ``worker``, or finds that it died."""
        bundle, reference = worker.queue[0]
        try:
            answers: list[Answer] = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            worker.queue.popleft()
            for message_id in bundle:
                self._fail(message_id, f"worker failed: {last_line(error)}")
            return
        except self._ray.exceptions.RayError as error:
            self._bury(worker, error)
            return
        worker.queue.popleft()
        self._deaths_in_a_row = 0
        for message_id, answer in zip(bundle, answers, strict=True):
            task = self._tasks[message_id]
            metadata = task.message.metadata
            self.costs.add(metadata.dst_node_id, metadata.message_type, answer.seconds)
            self.contexts[metadata.dst_node_id].state = answer.state
            self._finish(message_id, _reply(task, answer))

    def _finish(self, message_id: str, reply: Message) -> None:
        self._tasks.pop(message_id)
        self._unanswered.pop(reply.metadata.src_node_id, None)
        self._finished[message_id] = reply

    def _fail(self, message_id: str, why: str) -> None:
        self._finish(
            message_id, Message(Error(RAISED, why), reply_to=self._tasks[message_id].message)
        )

    def _bury(self, worker: Worker, error: Exception) -> None:
        """Replaces a dead worker; the clients that it was at are tried once more."""
        bundle, _ = worker.queue[0]
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > TRIES * (len(self._workers) + 1):
            raise EngineFailed(f"workers die one after the other: {last_line(error)}")
        self._replace(worker)
        for message_id in bundle:
            self._tasks[message_id].tries += 1
            if self._tasks[message_id].tries >= TRIES:
                del self._waiting[message_id]
                self._fail(message_id, f"worker died {TRIES} times: {last_line(error)}")

    def _replace(self, worker: Worker) -> None:
        """Ends a worker and starts another; what it was given waits again, before the rest."""
        self._ray.kill(worker.actor)
        given = chain.from_iterable(bundle for bundle, _ in worker.queue)
        again = {i: self._tasks[i] for i in given if i in self._tasks}
        self._waiting = again | self._waiting
        worker.queue.clear()
        worker.actor = self._start_worker()

    def _abandon(self, message_id: str) -> None:
        """Drops a message that nobody waits for any more."""
        self._tasks.pop(message_id, None)
        self._finished.pop(message_id, None)
        if self._waiting.pop(message_id, None) is None:
            for worker in self._workers:
                if any(message_id in bundle for bundle, _ in worker.queue):
                    self._replace(worker)


def _reply(task: Task, answer: Answer) -> Message:
    """The client's reply, its update a row of the cohort's matrix."""
    if answer.records is None:
        error = answer.error or Error(RAISED, "client gave neither content nor an error")
        return Message(error, reply_to=task.message)
    content = RecordDict(dict(answer.records))
    update, row = answer.update, task.row
    if update is not None and row is not None:
        if update.values is not None:
            row.values.copy_(torch.from_numpy(np.array(update.values)))
        arrays, start = {}, 0
        for name, shape in update.shapes:
            arrays[name] = row.values[start : start + prod(shape)].view(shape)
            start += prod(shape)
        content[update.name] = held_record(arrays, row)
    return Message(content, reply_to=task.message)


def _bytes(record: ArrayRecord) -> int:
    """How large a record's values are, about."""
    return sum(np.dtype(array.dtype).itemsize * prod(array.shape) for array in record.values())
