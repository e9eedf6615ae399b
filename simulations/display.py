"""What a run shows while it works: a live bar in a terminal, plain lines elsewhere."""

from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reply(Protocol):
    """A reply that may be an error."""

    def has_error(self) -> bool:
        """Whether the client failed."""
        ...


class Display:
    """Shows round, clients done, loss, TAR, ASR, who was pruned and the time left."""

    def __init__(self, console: Console, title: str, n_rounds: int, n_cohort: int) -> None:
        """Prepares the display; nothing is shown before it is entered."""
        self.console = console
        self.title = title
        self.n_rounds = n_rounds
        self.n_cohort = n_cohort
        self._seconds: list[float] = []
        self._started = 0.0
        self._round = 0
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("clients"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task(title, total=n_cohort, left="starting workers")

    def round_starts(self, server_round: int) -> None:
        """Shows that a round has begun."""
        self._started = monotonic()
        self._round = server_round
        if self._progress is not None:
            self._progress.reset(
                self._task,
                description=f"{self.title} round {server_round}/{self.n_rounds}",
                total=self.n_cohort,
                left=self._left(self.n_rounds - server_round + 1),
            )

    def reply(self, client: int, reply: Reply) -> None:
        """Counts one client as done."""
        if self._progress is not None:
            self._progress.advance(self._task)
        if reply.has_error():
            self.console.print(f"  client {client} failed in round {self._round}", markup=False)

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self.console.print(f"{self.title}: {text}", markup=False, highlight=False, soft_wrap=True)

    def round_ends(self, event: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
        """Prints the round's line."""
        self._seconds.append(monotonic() - self._started)
        facts = (
            f"{self.title} round {event['round']:>{len(str(self.n_rounds))}}/{self.n_rounds}",
            *_facts(event, evaluation),
            self._left(self.n_rounds - event["round"]),
        )
        line = " ".join(fact for fact in facts if fact)
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        for client, why in event["rejected"].items():
            self.console.print(f"  dropped client {client}: {why}", markup=False, soft_wrap=True)
        if event["kept_global"]:
            self.console.print(f"  global model kept: {event['kept_global']}", markup=False)

    def _left(self, n_rounds: int) -> str:
        recent = self._seconds[-5:]
        if not recent or n_rounds <= 0:
            return ""
        seconds = round(n_rounds * sum(recent) / len(recent))
        return f"left {seconds // 60}:{seconds % 60:02d}"

    def __enter__(self) -> Self:
        """Starts the live bar, if there is one."""
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the live bar away."""
        if self._progress is not None:
            self._progress.stop()


def _facts(event: dict[str, Any], evaluation: dict[str, Any] | None) -> list[str]:
    """The round in words: clients, loss, TAR, ASR, pruned."""
    facts = [f"clients {len(event['clients'])}"]
    if event["loss"] is not None:
        facts.append(f"loss {event['loss']:.3f}")
    if evaluation is not None and "failed" in evaluation:
        facts.append(f"not measured ({evaluation['failed']})")
    elif evaluation is not None:
        points = evaluation["verification"]["points"]
        if points:
            best = max(points, key=lambda point: point["alpha"])
            facts.append(f"TAR@{best['alpha']:g} {best['tar']:.3f}")
        backdoor = (evaluation["backdoor"] or {"recalibrated": []})["recalibrated"]
        facts += [f"ASR@{point['alpha']:g} {point['asr']:.3f}" for point in backdoor[:1]]
    if (privacy := event.get("privacy")) is not None:
        facts.append(_spent(privacy))
    if event["pruned"]:
        facts.append("pruned " + ",".join(map(str, event["pruned"])))
    return facts


def _spent(privacy: dict[str, Any]) -> str:
    """Epsilon spent and left, with its unit."""
    if privacy["epsilon"] is None:
        return f"epsilon infinite ({privacy['unit']}: no noise)"
    left = "" if privacy["left"] is None else f", {privacy['left']:.3g} left"
    return f"epsilon {privacy['epsilon']:.3g} ({privacy['unit']}{left})"
