"""Audits of a privacy claim: what a distinguisher can prove about epsilon.

A mechanism runs many times with a record (*in*) and as often with its neighbour (*out*); a score
tells the two apart. At a threshold, TPR is the share of in-runs above it and FPR of out-runs. Every
(epsilon, delta)-DP mechanism has TPR <= exp(epsilon) FPR + delta and the same with 1 - FPR and 1 -
TPR (Kairouz, Oh, Viswanath, ICML 2015), so exact (Clopper-Pearson) ends of TPR and FPR give a lower
bound on epsilon that fails with probability 1 - confidence (Jagielski, Ullman, Oprea, NeurIPS 2020;
Nasr et al., S&P 2021). Every mu-GDP mechanism has Phi^-1(TPR) - Phi^-1(FPR) <= mu; where a Gaussian
claim is audited this bound is much tighter (Nasr et al., "Tight Auditing of Differentially Private
Machine Learning", USENIX Security 2023).

Nothing here knows what was released: the scores may come from embeddings
(:func:`distinguishing_scores`), from canaries in DP-SGD or from any membership attack. The runs
must be independent. An audit can refute a claim; it never confirms one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta
from torch import Tensor

from fedface.privacy import gaussian

Scores = NDArray[np.float64]
Mechanism = Callable[[Tensor, torch.Generator], Tensor]
"""``(x (n, ...), rng) -> (n, dim)``: releases every row once, with noise of its own."""


@dataclass(frozen=True)
class Decisions:
    """How a distinguisher decided over independent runs.

    Attributes:
        true_positives: In-runs called *in*.
        n_in: Runs with the record.
        false_positives: Out-runs called *in*.
        n_out: Runs with its neighbour.
    """

    true_positives: int
    n_in: int
    false_positives: int
    n_out: int

    def __post_init__(self) -> None:
        """Checks the counts."""
        for hits, n in ((self.true_positives, self.n_in), (self.false_positives, self.n_out)):
            if not 0 <= hits <= n or n < 1:
                raise ValueError(f"decisions need n >= 1 and 0 <= positives <= n, got {self}")


@dataclass(frozen=True)
class Audit:
    """What an audit proved; both bounds hold with the stated confidence, each for itself.

    Attributes:
        epsilon: Lower bound on epsilon at ``delta``, for any mechanism.
        mu: Lower bound on mu, for a claim that the mechanism is mu-GDP.
        epsilon_gaussian: The epsilon of ``mu`` at ``delta``: what to compare with an epsilon that
            was accounted by GDP. No bound for mechanisms that are not Gaussian (subsampled ones).
        delta: At which both epsilons are stated.
        confidence: Of each bound.
        n_runs: In-runs and out-runs together, those that chose the thresholds included.
    """

    epsilon: float
    mu: float
    epsilon_gaussian: float
    delta: float
    confidence: float
    n_runs: int


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the exact interval of a binomial proportion, (1 - confidence) / 2 beyond each end.

    Clopper and Pearson, Biometrika 1934. It covers the truth at least as often as it says.

    Args:
        successes: In 0..n.
        n: Independent trials, at least 1.
        confidence: In (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"clopper_pearson needs n >= 1 and 0 <= successes <= n, got {successes=}, {n=}"
        )
    low, high = _ends(np.array([successes]), n, confidence)
    return float(low[0]), float(high[0])


def epsilon_lower_bound(decisions: Decisions, delta: float, confidence: float = 0.95) -> float:
    """Returns an epsilon that the mechanism exceeds or reaches, with probability ``confidence``.

    The larger of log((TPR - delta) / FPR) and log((1 - FPR - delta) / (1 - TPR)), and of 0, at the
    lower end of TPR and the upper end of FPR: both statements rest on the same two ends, each of
    which fails with probability (1 - confidence) / 2.

    Args:
        decisions: Of a threshold that was chosen before these runs.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_confidence(confidence)
    _check_delta(delta)
    low, high = _rates(decisions, confidence)
    return float(_epsilons(low, high, delta)[0])


def mu_lower_bound(decisions: Decisions, confidence: float = 0.95) -> float:
    """Returns a mu below or at that of a mu-GDP mechanism, with probability ``confidence``.

    Phi^-1(TPR) - Phi^-1(FPR) at the ends that :func:`epsilon_lower_bound` takes, or 0.

    Args:
        decisions: Of a threshold that was chosen before these runs.
        confidence: In (0, 1).

    Raises:
        ValueError: If a value is outside its range.
    """
    _check_confidence(confidence)
    low, high = _rates(decisions, confidence)
    return float(_mus(low, high)[0])


def audit(
    in_scores: NDArray[Any],
    out_scores: NDArray[Any],
    delta: float,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Audit:
    """Returns both bounds from the scores of independent runs, higher meaning *in*.

    Half of the runs, drawn at random, choose the threshold that would prove most; the other half
    proves it. Choosing and proving on the same runs would break the confidence.

    Args:
        in_scores: ``(n_in >= 2,)``, of runs with the record.
        out_scores: ``(n_out >= 2,)``, of runs with its neighbour.
        delta: In (0, 1).
        rng: Draws the halves.
        confidence: In (0, 1).

    Raises:
        ValueError: If a score is NaN, there are too few, or a value is outside its range.
    """
    _check_confidence(confidence)
    _check_delta(delta, zero=False)
    choosing, proving = zip(
        *(_halves(scores, rng, name) for scores, name in ((in_scores, "in"), (out_scores, "out"))),
        strict=True,
    )
    low, high, thresholds = _curve(choosing[0], choosing[1], confidence)
    best_epsilon = thresholds[int(_epsilons(low, high, delta).argmax())]
    best_mu = thresholds[int(_mus(low, high).argmax())]
    mu = mu_lower_bound(_decide(proving[0], proving[1], best_mu), confidence)
    return Audit(
        epsilon=epsilon_lower_bound(
            _decide(proving[0], proving[1], best_epsilon), delta, confidence
        ),
        mu=mu,
        epsilon_gaussian=gaussian.epsilon(mu, delta),
        delta=delta,
        confidence=confidence,
        n_runs=len(in_scores) + len(out_scores),
    )


def distinguishing_scores(
    mechanism: Mechanism,
    record: Tensor,
    neighbour: Tensor,
    noiseless: tuple[Tensor, Tensor],
    n_runs: int,
    n_releases: int,
    rng: torch.Generator,
) -> tuple[Scores, Scores]:
    """Returns the likelihood ratio's scores of in-runs and out-runs of a Gaussian release.

    ||z - u_out||^2 - ||z - u_in||^2, summed over the releases of a run: 2 sigma^2 times the log of
    the likelihood ratio, which no test of its size beats (Neyman and Pearson), and needs no sigma.

    Args:
        mechanism: Releases rows; called once per release, in-runs and out-runs together.
        record: ``(...)`` what the mechanism gets in an in-run, one row.
        neighbour: ``(...)`` what it gets in an out-run.
        noiseless: u_in and u_out ``(dim,)``, what it would release of the two without noise.
        n_runs: Of each kind.
        n_releases: Releases of the same row in one run.
        rng: Given to the mechanism.

    Returns:
        In-scores and out-scores, each ``(n_runs,)`` float64, ready for :func:`audit`.

    Raises:
        ValueError: If ``n_runs`` or ``n_releases`` is below 1, or the mechanism returns another
            shape.
    """
    if n_runs < 1 or n_releases < 1:
        raise ValueError(
            f"distinguishing needs n_runs >= 1 and n_releases >= 1, got {n_runs=}, {n_releases=}"
        )
    inside, outside = (u.double() for u in noiseless)
    rows = torch.cat([x.expand(n_runs, *x.shape) for x in (record, neighbour)])
    scores = torch.zeros(2 * n_runs, dtype=torch.float64)
    for _ in range(n_releases):
        z = mechanism(rows, rng).detach().cpu().double()
        if z.shape != (2 * n_runs, len(inside)):
            raise ValueError(
                f"the mechanism needs to return shape ({2 * n_runs}, {len(inside)}), "
                f"got {tuple(z.shape)}"
            )
        scores += (z - outside).square().sum(1) - (z - inside).square().sum(1)
    return scores[:n_runs].numpy(), scores[n_runs:].numpy()


def _ends(hits: NDArray[np.int64], n: int, confidence: float) -> tuple[Scores, Scores]:
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, beta.ppf(tail, hits, n - hits + 1), 0.0)
        high = np.where(hits < n, beta.isf(tail, hits + 1, n - hits), 1.0)
    return low, high


def _rates(decisions: Decisions, confidence: float) -> tuple[Scores, Scores]:
    """The lower end of TPR and the upper end of FPR."""
    true, false = np.array([decisions.true_positives]), np.array([decisions.false_positives])
    low, _ = _ends(true, decisions.n_in, confidence)
    _, high = _ends(false, decisions.n_out, confidence)
    return low, high


def _epsilons(tpr: Scores, fpr: Scores, delta: float) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = np.log(np.maximum(tpr - delta, 0)) - np.log(fpr)
        negative = np.log(np.maximum(1 - fpr - delta, 0)) - np.log1p(-tpr)
    found: Scores = np.maximum(np.nan_to_num(np.maximum(positive, negative), nan=0.0), 0.0)
    return found


def _mus(tpr: Scores, fpr: Scores) -> Scores:
    with np.errstate(invalid="ignore"):
        found: Scores = np.maximum(np.nan_to_num(ndtri(tpr) - ndtri(fpr), nan=0.0), 0.0)
    return found


def _halves(scores: NDArray[Any], rng: np.random.Generator, name: str) -> tuple[Scores, Scores]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or np.isnan(values).any():
        raise ValueError(
            f"an audit needs (n >= 2,) {name}-scores without NaN, got shape {values.shape} with "
            f"{int(np.isnan(values).sum())} NaN"
        )
    values = values[rng.permutation(len(values))]
    return values[: len(values) // 2], values[len(values) // 2 :]


def _curve(inside: Scores, outside: Scores, confidence: float) -> tuple[Scores, Scores, Scores]:
    """TPR's lower and FPR's upper ends at every threshold; *in* is a score >= threshold."""
    thresholds = np.union1d(inside, outside)
    true = len(inside) - np.searchsorted(np.sort(inside), thresholds)
    false = len(outside) - np.searchsorted(np.sort(outside), thresholds)
    low, _ = _ends(true, len(inside), confidence)
    _, high = _ends(false, len(outside), confidence)
    return low, high, thresholds


def _decide(inside: Scores, outside: Scores, threshold: float) -> Decisions:
    true, false = (int((scores >= threshold).sum()) for scores in (inside, outside))
    return Decisions(true, len(inside), false, len(outside))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence needs to lie in (0, 1), got {confidence}")


def _check_delta(delta: float, zero: bool = True) -> None:
    if not (0 <= delta < 1) or (delta == 0 and not zero):
        raise ValueError(f"delta needs to lie in {'[' if zero else '('}0, 1), got {delta}")
