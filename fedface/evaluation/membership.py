"""Was a person in the training? A test of whole people against people whom nobody trained on.

A backbone draws the images of those it was trained on closer together than those of strangers:
compactness, after Li, Rezaei and Liu, "User-Level Membership Inference Attack against Metric
Embedding Learning", 2022 (https://arxiv.org/abs/2203.02077); from memory of the idea, the measure
here is our own. People differ by themselves, so what counts is the rank of a person among
never-seen people under the same model. With a reference model that never saw the person, such as
the checkpoint before the person's first round, the gain over it is the better measure (difficulty
calibration, Watson et al., ICLR 2022, https://arxiv.org/abs/2111.08440).

A test that finds nothing proves nothing unless it would have found something: give it ``members``,
people whom the same model was trained on, and it says how well it tells those from strangers.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedface.evaluation.scores import pair_scores

Values = NDArray[np.float64]


@dataclass(frozen=True)
class MembershipTest:
    """How one person stands among never-seen people.

    Attributes:
        value: The person's statistic; higher speaks for membership.
        p_value: The share of never-seen people who stand as high, the person counted with them:
            (1 + #{never seen >= value}) / (1 + n). Under exchangeability, which is what "not
            trained on" means, it is below any alpha in at most that share of cases.
        n_never_seen: People compared with.
        smallest: The smallest p-value that so many people allow, 1 / (1 + n).
        power: The probability that a member stands above a never-seen person (AUC), None where no
            members were given.
        power_low: Lower end of its interval, over bootstraps of people.
        power_high: Upper end.
    """

    value: float
    p_value: float
    n_never_seen: int
    smallest: float
    power: float | None = None
    power_low: float | None = None
    power_high: float | None = None

    def verdict(self, alpha: float = 0.05) -> Literal["trace", "no trace", "cannot tell"]:
        """Returns what may be said at level ``alpha``.

        ``cannot tell`` where nothing was found by a test that could not have found it: too few
        people for a p-value that small, or members who are no more conspicuous than strangers.
        """
        if self.p_value <= alpha:
            return "trace"
        if self.smallest > alpha or self.power_low is None or self.power_low <= 0.5:
            return "cannot tell"
        return "no trace"


def compactness(embeddings: NDArray[np.floating[Any]], identities: NDArray[Any]) -> Values:
    """Returns ``(n_people,)`` each person's mean cosine of two different images.

    Args:
        embeddings: ``(n, dim)`` of length one.
        identities: ``(n,)`` integers: whom each image shows. People come in ascending order.

    Raises:
        ValueError: If the embeddings are invalid or a person has a single image: nothing can be
            said of it.
    """
    pairs = pair_scores(embeddings, identities)
    n_people = len(pairs.n_images)
    counts = np.bincount(pairs.genuine_identities, minlength=n_people)
    if lonely := int(np.count_nonzero(counts == 0)):
        raise ValueError(
            f"compactness needs two images of every person, got {lonely} of {n_people} people "
            "with one"
        )
    sums = np.bincount(pairs.genuine_identities, weights=pairs.genuine, minlength=n_people)
    means: Values = sums / counts
    return means


def membership_test(
    person: float,
    never_seen: Values,
    members: Values | None = None,
    rng: np.random.Generator | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
) -> MembershipTest:
    """Returns how a person's statistic stands among that of never-seen people.

    Args:
        person: The statistic of the person in question, :func:`compactness` or its gain over a
            reference model.
        never_seen: ``(n,)`` the same statistic of people whom nobody trained on.
        members: ``(m,)`` that of people who certainly were trained on, to know the test's power;
            None leaves it unknown.
        rng: Draws the bootstraps; needed with ``members``.
        n_bootstrap: Bootstraps of people behind the power's interval.
        confidence: Its coverage, in (0, 1).

    Raises:
        ValueError: If there is nobody to compare with, a value is not finite, or a setting is out
            of its range.
    """
    _check("never_seen", never_seen)
    if not np.isfinite(person):
        raise ValueError(f"person needs a finite statistic, got {person}")
    n = len(never_seen)
    p_value = (1 + np.count_nonzero(never_seen >= person)) / (1 + n)
    test = MembershipTest(float(person), float(p_value), n, 1 / (1 + n))
    if members is None:
        return test
    _check("members", members)
    if rng is None or n_bootstrap < 1 or not 0 < confidence < 1:
        raise ValueError(
            "the power's interval needs rng, n_bootstrap >= 1 and confidence in (0, 1), got "
            f"rng={rng}, n_bootstrap={n_bootstrap}, confidence={confidence}"
        )
    draws = [
        auc(rng.choice(members, len(members)), rng.choice(never_seen, n))
        for _ in range(n_bootstrap)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return MembershipTest(
        test.value,
        test.p_value,
        n,
        test.smallest,
        auc(members, never_seen),
        float(low),
        float(high),
    )


def auc(higher: Values, lower: Values) -> float:
    """Returns the probability that a value of ``higher`` exceeds one of ``lower``, ties half.

    The Mann-Whitney statistic over its largest value.
    """
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    not_above = np.searchsorted(ordered, higher, side="right")
    return float((below + not_above).sum() / (2 * len(higher) * len(lower)))


def _check(name: str, values: Values) -> None:
    if values.ndim != 1 or len(values) < 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"{name} needs shape (n >= 1,) and finite values, got shape {values.shape} with "
            f"{np.count_nonzero(~np.isfinite(values))} that are not finite"
        )
