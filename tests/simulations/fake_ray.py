"""Ray without processes: actors are objects that work when somebody waits, and die when told to."""

from collections.abc import Callable
from typing import Any

from ray import exceptions


class Reference:
    """What an actor will answer, or what was put into the store."""

    n_made = 0

    def __init__(self, compute: Callable[[], Any]) -> None:
        Reference.n_made += 1
        self.number = Reference.n_made
        self.compute = compute
        self.outcome: tuple[bool, Any] | None = None

    def hex(self) -> str:
        return f"{self.number:x}"

    def done(self) -> tuple[bool, Any]:
        if self.outcome is None:
            try:
                self.outcome = (True, self.compute())
            except Exception as error:
                self.outcome = (False, error)
        return self.outcome


class Actor:
    """An actor around ``worker``; it has methods with ``remote``, as Ray's have."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.dead = False
        self.given: list[Any] = []
        self.answer = self

    def remote(self, work: Any) -> Reference:
        self.given.append(work)
        return Reference(lambda: self._work(work))

    def _work(self, work: Any) -> Any:
        if self.dead:
            raise exceptions.ActorDiedError()
        try:
            return self.worker.answer(work)
        except Killed:
            self.dead = True
            raise exceptions.ActorDiedError() from None
        except Exception as error:
            raise exceptions.RayTaskError("answer", str(error), error) from None


class Killed(BaseException):
    """Raised by a client to end the process that it runs in."""


class FakeRay:
    """The functions of Ray that the resident grid uses.

    Attributes:
        n_put: How many objects were put into the store.
        stuck: Actors that never come to an end.
    """

    exceptions = exceptions

    def __init__(self) -> None:
        self.n_put = 0
        self.stuck: set[int] = set()
        self.owners: dict[int, Actor] = {}
        self.killed: list[Actor] = []

    def put(self, value: Any) -> Reference:
        self.n_put += 1
        return Reference(lambda: value)

    def get(self, reference: Reference) -> Any:
        good, value = reference.done()
        if not good:
            raise value
        return value

    def wait(
        self, references: list[Reference], num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        free = [r for r in references if r.number not in self.stuck]
        ready = free[:num_returns] if timeout else [r for r in free if r.outcome is not None]
        for reference in ready:
            reference.done()
        return ready, [r for r in references if r not in ready]

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        self.killed.append(actor)
