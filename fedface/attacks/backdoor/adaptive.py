"""Adaptive: as much of the backdoor as the server's rule is known to let through.

The full-information adversary of Fenaux, Wang, Yan, Chung, Kerschbaum, "Hammer and Anvil: Toward a
Theory of Backdoors in Federated Learning", 2025, https://arxiv.org/abs/2509.08089: it knows the
honest updates, the rule and its parameters, and stays just inside what is accepted. Ours is
generic: it also knows the rule's state, and asks the rule itself (``Coalition.judge``) instead of
solving for each rule's bound. A FULL-INFORMATION ATTACK: no real attacker knows so much, and what a
rule withstands here it withstands in earnest.

With h_i and g_i the honest and the poisoned update of colluder i, all colluders send
h_i + lambda (g_i - h_i) with one lambda, the largest in [0, lambda_max] that bisection finds at
which every colluder keeps trust above zero. Bisection supposes that more lambda is never less
suspicious; where that is not so, what it finds is accepted still, if not the largest. A rule may
trust less whom it nearly refuses, so fractions of that lambda are tried, too, and the one is sent
at which lambda times the trust in the colluders is most. If the rule
refuses lambda = 0 too (it may remember), honest updates are sent to win its trust back. Trust is
all that is looked at: a rule that shortens updates, or trusts everybody and votes by coordinate
(a median), says yes to everything, gets lambda_max, and must withstand it.
"""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from fedface.attacks.attack import Coalition, Memory, Site
from fedface.attacks.backdoor.attack import Backdoor
from fedface.attacks.backdoor.honest_too import HONEST, train_honestly_too
from fedface.training.site_update import SiteUpdate


def largest_accepted(accepts: Callable[[float], bool], limit: float, n_questions: int) -> float:
    """Returns the largest accepted number found in [0, limit]; 0 if not even 0 is accepted.

    Args:
        accepts: Asked for ``limit``, then 0, then by bisection.
        limit: At least zero.
        n_questions: How often it may be asked, at least 2.
    """
    if accepts(limit):
        return limit
    if not accepts(0.0):
        return 0.0
    low, high = 0.0, limit
    for _ in range(n_questions - 2):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


FRACTIONS = (0.85, 0.7, 0.55)
"""Of the largest accepted lambda, tried where the rule does not trust it in full."""


def most_influential(
    influence: Callable[[float], float], largest: float, fractions: tuple[float, ...] = FRACTIONS
) -> float:
    """Returns ``largest`` or that fraction of it at which ``influence`` is most; ties go up."""
    return max((largest * fraction for fraction in (1.0, *fractions)), key=influence)


class Adaptive(Backdoor):
    """honest + lambda * (poisoned - honest), with the largest lambda that is trusted.

    Attributes:
        lambda_max: The most that is tried, or None for n_clients / n_malicious, with which the
            colluders' deviations fill a plain mean of equal clients.
        n_judgements: How often the rule is asked per round for the largest lambda, before three
            fractions of it are tried; each costs as much as an aggregation. 8 find lambda to
            within lambda_max / 64.
    """

    name: Literal["adaptive"] = "adaptive"
    lambda_max: PositiveFloat | None = None
    n_judgements: Annotated[int, Field(ge=2)] = 8

    def train(self, site: Site) -> tuple[SiteUpdate, Memory]:
        """Returns the poisoned training; notes the honest update."""
        return train_honestly_too(site, self.hooks(site))

    def collude(self, coalition: Coalition) -> Tensor:
        """Returns the updates at the most influential accepted lambda; asks the server's rule."""
        honest = coalition.notes[HONEST]
        backdoors = coalition.updates - honest
        limit = self.lambda_max
        if limit is None:
            limit = coalition.n_clients / coalition.n_malicious

        @cache
        def trust(factor: float) -> float:
            return trust_in_all(coalition, honest + factor * backdoors)

        largest = largest_accepted(lambda factor: trust(factor) > 0, limit, self.n_judgements)
        if 0 < largest < limit:
            largest = most_influential(lambda factor: factor * trust(factor), largest)
        return honest + largest * backdoors


def trust_in_all(coalition: Coalition, crafted: Tensor) -> float:
    """Returns the colluders' trust together if they sent ``crafted``; 0 if one is not trusted.

    A rule that refuses the whole cohort (ValueError) has not trusted them.
    """
    try:
        trust = coalition.judge(crafted).trust[coalition.rows]
    except ValueError:
        return 0.0
    return float(trust.sum()) if bool((trust > 0).all()) else 0.0
