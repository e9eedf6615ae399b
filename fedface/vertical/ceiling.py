"""The utility ceiling: no accuracy above it is possible at the stated noise.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available; the rest is our
reconstruction. The ceiling is ours: it exposes wrong accounting (an epsilon per iteration, a
sensitivity of C called replace-one, amplification, noise left out at test time).

**Two classes.** z = u + N(0, sigma^2 I) with ||u|| <= C. Whatever the encoder, two class means lie
at most 2 C apart, and the best decision between N(m_0, sigma^2 I) and N(m_1, sigma^2 I) at even
odds is right with probability Phi(||m_0 - m_1|| / (2 sigma)) <= Phi(C / sigma): the dimension
plays no part, and the bound is met by two opposite points of the sphere.

**Many classes and what else is known.** Let the active party alone, with all its own features w
and the best possible rule, be right with probability a. Given z too, some rule S_i(w) decides for
class i. For every u in the ball N(u, sigma^2 I) and the reference N(0, sigma^2 I) are (C /
sigma)-GDP neighbours (zero-out!), so P(z in S_i | i, w) <= f(q_i(w)) with q_i(w) the probability
of S_i(w) under the reference and f(q) = Phi(Phi^-1(q) + C / sigma), which is concave. Mixing over
classes and w (Jensen) gives P(right) <= f(E sum_i P(i | w) q_i(w)), and that expectation is the
accuracy of a rule that sees w and pure noise: at most a. Hence

    P(right) <= Phi(Phi^-1(a) + C / sigma),

with a = 1 / n_classes when the active party knows nothing and classes are even; a = 1/2 is the
bound for two classes above. m conditionally independent embeddings of the record (parties, or
repeated releases that can be averaged) together lie in a ball of radius sqrt(m) C.

**Limits.** It bounds the probability for a random record, not a measured share: a finite test set
scatters around it (:func:`crossing_p_value`). It says nothing of decisions from many records
together (verification by comparing two noisy embeddings, a person judged by many images) and
nothing of what a top model learnt from other records: only z of the tested record counts. For more
than two classes, and where a > 1/2, it need not be attainable.
"""

import math

from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fedface.privacy import gaussian
from fedface.privacy.release import Neighbour, sensitivity


def utility_ceiling(
    clip: float, sigma: float, prior_accuracy: float = 0.5, n_embeddings: int = 1
) -> float:
    """Returns Phi(Phi^-1(a) + sqrt(m) C / sigma), the best possible accuracy for one record.

    Args:
        clip: C, above 0.
        sigma: Noise per coordinate, above 0.
        prior_accuracy: a in (0, 1), the best accuracy without the noisy embeddings: 1 / n_classes
            for even classes, the active party's own accuracy where it has features.
        n_embeddings: m, how many independently noised embeddings of the record are used.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < prior_accuracy < 1:
        raise ValueError(f"prior_accuracy needs to lie in (0, 1), got {prior_accuracy}")
    if n_embeddings < 1:
        raise ValueError(f"n_embeddings needs to be at least 1, got {n_embeddings}")
    return float(ndtr(ndtri(prior_accuracy) + gaussian.mu(clip, sigma, n_embeddings)))


def ceiling_at(
    epsilon: float,
    delta: float,
    neighbour: Neighbour = "replace_one",
    n_releases: int = 1,
    n_parties: int = 1,
    prior_accuracy: float = 0.5,
) -> float:
    """Returns the ceiling at a budget: what one release by each party can carry at test time.

    The budget pays n_releases of a record by n_parties jointly; the decision uses one of them from
    each party. The number of parties cancels: their joint sensitivity buys as much noise as their
    joint embedding gains. Whoever averages all releases of a training record reaches n_releases = 1
    of the same epsilon.

    Args:
        epsilon: The whole budget, above 0.
        delta: In (0, 1).
        neighbour: The relation under which epsilon is stated.
        n_releases: Releases that the budget pays.
        n_parties: Parties that share it.
        prior_accuracy: As for :func:`utility_ceiling`.

    Raises:
        ValueError: If a number is out of range.
    """
    sigma = gaussian.sigma_for(epsilon, delta, sensitivity(1.0, neighbour, n_parties), n_releases)
    return utility_ceiling(1.0, sigma, prior_accuracy, n_parties)


def binary_ceiling(clip: float, sigma: float, prior: float, n_embeddings: int = 1) -> float:
    """Returns the exact best accuracy of a two-class decision with uneven odds.

    p Phi(D / 2 + log(p / (1 - p)) / D) + (1 - p) Phi(D / 2 - log(p / (1 - p)) / D) with D = 2
    sqrt(m) C / sigma: the likelihood ratio test between two opposite points of the sphere. Never
    above :func:`utility_ceiling` at a = max(p, 1 - p).

    Args:
        clip: C, above 0.
        sigma: Noise per coordinate, above 0.
        prior: p in (0, 1), the probability of one of the classes.
        n_embeddings: m, as for :func:`utility_ceiling`.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior needs to lie in (0, 1), got {prior}")
    if n_embeddings < 1:
        raise ValueError(f"n_embeddings needs to be at least 1, got {n_embeddings}")
    distance = 2 * gaussian.mu(clip, sigma, n_embeddings)
    shift = math.log(prior / (1 - prior)) / distance
    right = prior * ndtr(distance / 2 + shift) + (1 - prior) * ndtr(distance / 2 - shift)
    return float(right)


def crossing_p_value(n_right: int, n: int, ceiling: float) -> float:
    """Returns how likely at least n_right of n independent decisions are right at the ceiling.

    A tiny value means that the accuracy cannot have been reached at the stated noise.

    Args:
        n_right: Right decisions, in 0..n.
        n: Tested records, at least 1.
        ceiling: In (0, 1].

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 <= n_right <= n or n < 1 or not 0 < ceiling <= 1:
        raise ValueError(
            "a crossing needs 0 <= n_right <= n, n >= 1 and a ceiling in (0, 1], "
            f"got {n_right=}, {n=}, {ceiling=}"
        )
    return float(binom.sf(n_right - 1, n, ceiling))
