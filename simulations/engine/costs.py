"""Who works next: the client that is expected to take longest, by what it took before.

Longest processing time first (Graham, SIAM J. Appl. Math. 1969): with m workers the last one ends
at most 4/3 - 1/(3m) times as late as with the best plan.
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace
from itertools import islice
from math import inf

KEPT = 0.5
"""How much of the earlier estimate stays when a new measurement comes."""

BUNDLE_SECONDS = 0.1
"""Clients that take less than this, together too, travel as one bundle: giving a worker something
costs Ray milliseconds."""


class ClientCosts:
    """The seconds that each client takes, measured as the run goes."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._seconds: dict[tuple[int, str], float] = {}

    def add(self, node: int, kind: str, seconds: float) -> None:
        """Learns that ``node`` took ``seconds`` for a message of this kind."""
        before = self._seconds.get((node, kind), seconds)
        self._seconds[node, kind] = KEPT * before + (1 - KEPT) * seconds

    def expected(self, node: int, kind: str) -> float:
        """Returns the seconds that ``node`` will take; infinite while nobody knows."""
        return self._seconds.get((node, kind), inf)


def bundle_size(expected: Iterable[float], n_waiting: int, n_workers: int) -> int:
    """Returns how many of the clients that wait one worker gets next: one, or small ones together.

    Bundles shrink with what is left, so that all workers end at about the same time (guided
    self-scheduling: Polychronopoulos & Kuck, IEEE Transactions on Computers 1987; half as large).

    Args:
        expected: Seconds that each of them will take, in the order in which they are given out.
        n_waiting: How many wait, one or more.
        n_workers: One or more.
    """
    size, total = 0, 0.0
    for seconds in islice(expected, max(1, n_waiting // (2 * n_workers))):
        total += seconds
        if size and total > BUNDLE_SECONDS:
            break
        size += 1
    return size


def makespan(costs: Sequence[float], n_workers: int) -> float:
    """Returns when the last of ``n_workers`` ends if each takes the longest work that is left.

    Args:
        costs: Seconds of each piece of work, in any order.
        n_workers: One or more.
    """
    busy_until = [0.0] * n_workers
    heapify(busy_until)
    for seconds in sorted(costs, reverse=True):
        heapreplace(busy_until, busy_until[0] + seconds)
    return max(busy_until)
