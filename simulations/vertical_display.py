"""What a vertical run shows while it works: a live bar in a terminal, plain lines elsewhere."""

from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class VerticalDisplay:
    """Shows round, steps done, loss, accuracy, who was missing, what was spent and time left."""

    def __init__(self, console: Console, title: str, n_rounds: int) -> None:
        """Prepares the display; nothing is shown before it is entered."""
        self.console = console
        self.title = title
        self.n_rounds = n_rounds
        self._seconds: list[float] = []
        self._started = 0.0
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task(title, total=None, left="starting workers")

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def round_starts(self, server_round: int, n_steps: int) -> None:
        """Shows that a round of ``n_steps`` mini-batches has begun."""
        self._started = monotonic()
        if self._progress is not None:
            self._progress.reset(
                self._task,
                description=f"{self.title} round {server_round}/{self.n_rounds}",
                total=n_steps,
                left=self._left(self.n_rounds - server_round + 1),
            )

    def step(self, done: int) -> None:
        """Shows how many mini-batches are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done)

    def round_ends(self, event: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
        """Prints the round's line; rounds of the active party alone only when measured."""
        self._seconds.append(monotonic() - self._started)
        refused = event["refused"]
        if event["phase"] == "alone" and evaluation is None and not refused:
            return
        facts = [f"{self.title} round {event['round']:>{len(str(self.n_rounds))}}/{self.n_rounds}"]
        if event["loss"] is not None:
            facts.append(f"loss {event['loss']:.3f}")
        facts += _measured(evaluation)
        if event["spent"]:
            epsilon = max(s.get("replace_one", 0.0) for s in event["spent"].values())
            if epsilon:
                facts.append(f"spent epsilon {epsilon:.3g}")
        if event["away"]:
            facts.append("away " + ",".join(event["away"]))
        facts.append(self._left(self.n_rounds - event["round"]))
        self.say(" ".join(fact for fact in facts if fact))
        for name, (why, count) in refused.items():
            self.say(f"  refused {count} of party {name}: {why}")

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


def _measured(evaluation: dict[str, Any] | None) -> list[str]:
    """The evaluation in words: the enrolled, TAR, rank-1."""
    if evaluation is None:
        return []
    if "failed" in evaluation:
        return [f"not measured ({evaluation['failed']})"]
    facts = []
    if evaluation["enrolled"] is not None:
        facts.append(f"enrolled {evaluation['enrolled']['accuracy']:.3f}")
    points = evaluation["verification"]["points"]
    facts += [f"TAR@{point['alpha']:g} {point['tar']:.3f}" for point in points]
    facts.append(f"EER {evaluation['verification']['eer']:.3f}")
    facts.append(f"rank-1 {evaluation['identification']['rates'][0]['rate']:.3f}")
    return facts
