"""Decorrelated: colluders whose updates share no more direction than they dare.

Ours, against ARIBA's look at shared directions (:mod:`fedface.aggregation.shared_direction`; also
FoolsGold's at similarity, Fung et al., RAID 2020). The colluders know that a rule compares clients'
residuals, updates at unit length minus the consensus, and roughly how much sharing it forgives;
they know no honest client's update and nothing of its memory.

Noise. With h_i and g_i the honest and the poisoned update at unit length, b_i = g_i - h_i, and
what the m colluders see of honest residuals among themselves,

    sigma^2 = sum_i |h_i - mean h|^2 / (m - 1),   c_i = m / (m - 1) <h_i - mean h, b_i>,

a pair is expected to share

    rho_ij = <b_i, b_j> / sqrt(E_i E_j),   E_i = sigma^2 + 2 c_i + |b_i|^2.

They send h_i + a b_i + sqrt(1 - a^2) (s_i * b_i), with s_i signs of each colluder's own, drawn anew
for each weight and round: noise that is orthogonal to all b up to chance, and as long as what it
replaces in every fragment. a in [0, 1] is the largest that bisection finds for which what is sent,
at its final length, shares at most ``target_share``.

Turns. Only one colluder sends its poisoned update, the others are honest; after ``turn_rounds`` it
is the next one's turn. In a round nobody shares anything; a rule that remembers residuals may
still put the rounds together. The one backdoor of a round is averaged with n - 1 honest updates, so
``turn_scale`` may lengthen it: h_i |h_i| + scale * |h_i| b_i is sent.

Noise, and turns of scale 1, are as long as the honest update.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from fedface.aggregation.distances import gram, update_norms
from fedface.attacks.attack import Coalition, Memory, Site
from fedface.attacks.backdoor.adaptive import largest_accepted
from fedface.attacks.backdoor.attack import Backdoor
from fedface.attacks.backdoor.honest_too import HONEST, train_honestly_too
from fedface.attacks.statistics import mean_update
from fedface.training.site_update import SiteUpdate

_N_STEPS = 12


def at_length(updates: Tensor, lengths: Tensor) -> Tensor:
    """Returns each row of ``(n, dim)`` at its Euclidean length of ``(n,)``; zeros stay zeros."""
    return updates * (lengths / update_norms(updates).clamp_min(1e-30)).float()[:, None]


def largest_share(honest: Tensor, backdoors: Tensor) -> float:
    """Returns the most that two colluders are expected to share: max rho_ij, 0 for a single one.

    Args:
        honest: ``(n, dim)`` h at unit length.
        backdoors: ``(n, dim)`` b.
    """
    n = len(honest)
    if n < 2:
        return 0.0
    residuals = honest - mean_update(honest)
    products = gram(torch.cat((residuals, backdoors)))
    crossed = n / (n - 1) * products[:n, n:].diagonal()
    inner = products[n:, n:]
    energies = products[:n, :n].trace() / (n - 1) + 2 * crossed + inner.diagonal()
    lengths = energies.clamp_min(1e-30).sqrt()
    return float((inner / lengths.outer(lengths)).fill_diagonal_(-1.0).max())


class Decorrelated(Backdoor):
    """A backdoor whose carriers do not look alike.

    Attributes:
        mode: ``"noise"`` hides what is shared under noise, ``"turns"`` lets one attack at a time.
        target_share: With noise: the most that two colluders may share, in [0, 1]. Our ARIBA shuts
            a pair out at about 0.1 (6 spreads of 0.012 over 0.75) in the long run.
        turn_rounds: With turns: rounds that one colluder attacks in a row.
        turn_scale: With turns: by how much his backdoor is scaled, whose length then shows. 1 keeps
            the honest length.
    """

    name: Literal["decorrelated"] = "decorrelated"
    mode: Literal["noise", "turns"] = "noise"
    target_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    turn_rounds: PositiveInt = 1
    turn_scale: PositiveFloat = 1.0

    def train(self, site: Site) -> tuple[SiteUpdate, Memory]:
        """Returns the poisoned training; notes the honest update."""
        return train_honestly_too(site, self.hooks(site))

    def collude(self, coalition: Coalition) -> Tensor:
        """Returns the hidden updates; uses the colluders' own only."""
        honest = coalition.notes[HONEST]
        if self.mode == "noise":
            return self.noisy(coalition.updates, honest, coalition)
        turn = (coalition.server_round - 1) // self.turn_rounds % len(honest)
        sent = honest.clone()
        poisoned = at_length(coalition.updates, update_norms(honest))[turn]
        sent[turn] = (1 - self.turn_scale) * honest[turn] + self.turn_scale * poisoned
        return sent

    def noisy(self, poisoned: Tensor, honest: Tensor, coalition: Coalition) -> Tensor:
        """Returns ``(n, dim)`` updates of the honest length that share at most the target.

        Args:
            poisoned: ``(n, dim)``.
            honest: ``(n, dim)``.
            coalition: Gives the random stream.
        """
        ones = torch.ones(len(honest), dtype=torch.float64)
        start = at_length(honest, ones)
        backdoors = at_length(poisoned, ones) - start
        coins = torch.randint(0, 2, honest.shape, generator=coalition.stream("decorrelated"))
        noise = backdoors * (2.0 * coins - 1)

        def mixed(kept: float) -> Tensor:
            return at_length(start + kept * backdoors + (1 - kept**2) ** 0.5 * noise, ones)

        def hidden(kept: float) -> bool:
            return largest_share(start, mixed(kept) - start) <= self.target_share

        kept = largest_accepted(hidden, 1.0, _N_STEPS)
        return at_length(mixed(kept), update_norms(honest))
