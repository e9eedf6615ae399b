"""A site's privacy account: what was spent, written down before anything leaves the site.

An append-only file of JSON lines. A *charge* is on the disk before training starts; a second line
settles it: ``released`` before the update leaves the site, ``failed`` when an error did. So a
killed site cannot have spent what is not recorded. A charge that was never settled released
nothing: the same round, asked again with the same weights and settings, takes it up instead of
paying twice. Everything else is a new charge, and every charge has noise of its own.

A line that a kill tore off is no charge, for training starts after the whole line is on the disk.
Any other damage is refused: a ledger that cannot be read says nothing about what is left.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from fedface.config import Config
from fedface.privacy.accounting import Accountant, Steps, epsilon
from fedface.privacy.release import BudgetSpent
from fedface.privacy.units import Unit
from fedface.report.files import append_line, write_atomically

Outcome = Literal["released", "failed"]


class Charge(Config):
    """One entry of an account.

    Attributes:
        number: Its place, from 0; it names the noise.
        key: What makes a repetition the same: digest of weights, round and settings.
        unit: Whose presence the steps hide.
        noise_multiplier: z of the steps.
        sample_rate: q of the steps.
        n_steps: How many.
        purpose: For readers: run and round.
    """

    number: NonNegativeInt
    key: str
    unit: Unit
    noise_multiplier: NonNegativeFloat
    sample_rate: float
    n_steps: PositiveInt
    purpose: str

    @property
    def steps(self) -> Steps:
        """The steps, as the accountants count them."""
        return Steps(self.noise_multiplier, self.sample_rate, self.n_steps)


class _Line(Config):
    """A line of the file: a charge, or how one ended."""

    charge: Charge | None = None
    settled: NonNegativeInt | None = None
    outcome: Outcome | None = None


class Budget(NamedTuple):
    """What may be spent: ``epsilon`` None is no limit."""

    epsilon: float | None
    delta: float
    accountant: Accountant


class Account:
    """The account of one site, for one unit of privacy."""

    def __init__(self, path: Path | None = None, lines: Sequence[str] = ()) -> None:
        """Opens the account.

        Args:
            path: Its file, or None to keep it in memory alone.
            lines: What else is known of it (from Flower's state): the longer record counts.

        Raises:
            ValueError: If the file is damaged, or is another account than ``lines``.
        """
        self.path = path
        self.lines: list[str] = list(lines)
        self.charges: list[Charge] = []
        self.outcomes: dict[int, Outcome] = {}
        with self._locked():
            self._read()

    def history(self) -> tuple[Steps, ...]:
        """Returns the steps of every charge, settled or not."""
        return tuple(charge.steps for charge in self.charges)

    def spent(self, delta: float, accountant: Accountant) -> float:
        """Returns the epsilon of all charges together; infinity if one had no noise."""
        return epsilon(self.history(), delta, accountant)

    def find(self, key: str) -> tuple[Charge, Outcome | None] | None:
        """Returns the latest charge with ``key`` and how it ended (None: it did not), if any."""
        for charge in reversed(self.charges):
            if charge.key == key:
                return charge, self.outcomes.get(charge.number)
        return None

    def require(self, steps: Steps, budget: Budget, n_times: int = 1) -> None:
        """Checks that ``steps`` can be paid ``n_times`` more.

        Raises:
            BudgetSpent: If not; the message says what is spent and what was left.
        """
        if budget.epsilon is None:
            return
        more = Steps(steps.noise_multiplier, steps.sample_rate, steps.n_steps * n_times)
        after = epsilon((*self.history(), more), budget.delta, budget.accountant)
        if after > budget.epsilon * (1 + 1e-9):
            spent = self.spent(budget.delta, budget.accountant)
            raise BudgetSpent(
                f"the privacy budget of epsilon {budget.epsilon:g} (delta {budget.delta:g}) has no "
                f"room for another round: {spent:.4g} is spent, with it {after:.4g} would be; "
                "nothing was trained or released"
            )

    def charge(self, key: str, unit: Unit, steps: Steps, budget: Budget, purpose: str) -> Charge:
        """Writes a charge down, on the disk before this returns.

        Raises:
            BudgetSpent: If it would go beyond the budget; nothing is written then.
            ValueError: If the account is kept for another unit.
            OSError: If it cannot be written.
        """
        with self._locked():
            self._read()
            if others := {c.unit for c in self.charges} - {unit}:
                raise ValueError(
                    f"{self.path or 'the account'}: an account needs one unit of privacy, it holds "
                    f"charges for {', '.join(sorted(others))}, got {unit}"
                )
            self.require(steps, budget)
            charge = Charge(
                number=len(self.charges),
                key=key,
                unit=unit,
                noise_multiplier=steps.noise_multiplier,
                sample_rate=steps.sample_rate,
                n_steps=steps.n_steps,
                purpose=purpose,
            )
            self._append(_Line(charge=charge))
        return charge

    def settle(self, charge: Charge, outcome: Outcome) -> None:
        """Writes down how a charge ended; ``released`` belongs before the release.

        Raises:
            OSError: If it cannot be written.
        """
        with self._locked():
            self._read()
            self._append(_Line(settled=charge.number, outcome=outcome))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, among all processes of this machine."""
        if self.path is None:
            with nullcontext():
                yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            yield

    def _read(self) -> None:
        """Takes up the file, or the known lines where they are more."""
        text = self.path.read_text() if self.path is not None and self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        found = whole.splitlines()
        shared = min(len(found), len(self.lines))
        if found[:shared] != self.lines[:shared]:
            raise ValueError(f"{self.path}: needed the account that this site kept, found another")
        if self.path is not None and (len(self.lines) > len(found) or whole != text):
            longer = self.lines if len(self.lines) > len(found) else found
            write_atomically(self.path, "".join(line + "\n" for line in longer))
        self.lines = self.lines if len(self.lines) > len(found) else found
        self.charges, self.outcomes = [], {}
        for number, line in enumerate(self.lines, 1):
            self._take(line, number)

    def _take(self, text: str, number: int) -> None:
        """One line into the account."""
        try:
            line = _Line.model_validate(json.loads(text))
            good = line.charge is None or line.charge.number == len(self.charges)
            good &= line.settled is None or line.settled < len(self.charges)
        except (ValueError, ValidationError):
            good = False
        if not good or (line.charge is None) == (line.settled is None):
            raise ValueError(
                f"{self.path or 'the account'}: line {number}: needed a charge or its settlement, "
                "found something else; without a whole ledger nothing is released"
            )
        if line.charge is not None:
            self.charges.append(line.charge)
        elif line.settled is not None and line.outcome is not None:
            self.outcomes[line.settled] = line.outcome

    def _append(self, line: _Line) -> None:
        text = line.model_dump_json(exclude_none=True)
        if self.path is not None:
            append_line(self.path, text)
        self.lines.append(text)
        self._take(text, len(self.lines))


def left(spent: float, budget: Budget) -> float | None:
    """Returns what remains of the budget, None without a limit."""
    return None if budget.epsilon is None else max(0.0, budget.epsilon - min(spent, math.inf))
