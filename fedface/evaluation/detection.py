"""Does a defence exclude the malicious clients, and whom else?

Every figure counts client-rounds. In face recognition the clients hold disjoint people, so each
honest client is an outlier; the honest-exclusion rate of the worst-off client shows the price.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True)
class DetectionReport:
    """How well a defence told clients apart; None stands where a figure is undefined.

    ``dataclasses.asdict`` gives plain JSON values.

    Attributes:
        n_malicious: Client-rounds with an attack.
        n_honest: Client-rounds without.
        tpr: The share of malicious client-rounds that were excluded.
        fpr: The share of honest client-rounds that were excluded.
        auroc: Area under the ROC curve of the scores over all client-rounds together.
        auroc_within_rounds: The mean over rounds of each round's own area: scores of two rounds
            need not share a scale. Rounds with one kind of client are left out.
        honest_exclusion: HER_k of each client: rounds excluded while honest / rounds honest.
        max_honest_exclusion: The largest HER_k.
        n_clean_rounds: Rounds with participants and no attack.
        clean_exclusion: The share of client-rounds excluded in these.
    """

    n_malicious: int
    n_honest: int
    tpr: float | None
    fpr: float | None
    auroc: float | None
    auroc_within_rounds: float | None
    honest_exclusion: tuple[float | None, ...]
    max_honest_exclusion: float | None
    n_clean_rounds: int
    clean_exclusion: float | None


def detection_report(
    scores: NDArray[np.float64] | None,
    pruned: NDArray[np.bool_],
    malicious: NDArray[np.bool_],
    participated: NDArray[np.bool_],
) -> DetectionReport:
    """Returns the detection figures of a whole run.

    Args:
        scores: ``(n_rounds, n_clients)`` anomaly scores, higher is more suspicious, infinity
            allowed, anything where a client did not take part; None if the defence has no scores.
        pruned: ``(n_rounds, n_clients)`` bool: who got no trust.
        malicious: The same shape: who attacked in that round. A client that attacks late counts
            as honest before.
        participated: The same shape: who answered validly.

    Raises:
        ValueError: If shapes or types differ, an absent client is pruned, or the score of a
            present one is NaN.
    """
    _check_records(scores, pruned, malicious, participated)
    attacking, honest = malicious & participated, ~malicious & participated
    clean = participated.any(axis=1) & ~attacking.any(axis=1)
    her = tuple(_share(pruned[:, k], honest[:, k]) for k in range(pruned.shape[1]))
    known = [rate for rate in her if rate is not None]
    pooled, within = None, None
    if scores is not None:
        pooled = _auroc(scores[participated], malicious[participated])
        areas = [
            _auroc(s[here], bad[here])
            for s, bad, here in zip(scores, malicious, participated, strict=True)
        ]
        defined = [area for area in areas if area is not None]
        within = float(np.mean(defined)) if defined else None
    return DetectionReport(
        n_malicious=int(attacking.sum()),
        n_honest=int(honest.sum()),
        tpr=_share(pruned, attacking),
        fpr=_share(pruned, honest),
        auroc=pooled,
        auroc_within_rounds=within,
        honest_exclusion=her,
        max_honest_exclusion=max(known) if known else None,
        n_clean_rounds=int(clean.sum()),
        clean_exclusion=_share(pruned[clean], participated[clean]),
    )


def _share(event: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    """How often ``event`` holds where ``among`` does."""
    n = int(among.sum())
    return float((event & among).sum() / n) if n > 0 else None


def _auroc(scores: NDArray[np.float64], malicious: NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve, by ranks so that infinite scores count too."""
    if malicious.all() or not malicious.any():
        return None
    _, ranks = np.unique(scores, return_inverse=True)
    return float(roc_auc_score(malicious, ranks))


def _check_records(
    scores: NDArray[np.float64] | None,
    pruned: NDArray[np.bool_],
    malicious: NDArray[np.bool_],
    participated: NDArray[np.bool_],
) -> None:
    """Refuses records that contradict each other."""
    if pruned.ndim != 2:
        raise ValueError(f"pruned needs shape (n_rounds, n_clients), got {pruned.shape}")
    for name, flags in (
        ("pruned", pruned),
        ("malicious", malicious),
        ("participated", participated),
    ):
        if flags.shape != pruned.shape or flags.dtype != np.bool_:
            raise ValueError(
                f"{name} needs shape {pruned.shape} and dtype bool, got {flags.shape} {flags.dtype}"
            )
    if np.any(pruned & ~participated):
        raise ValueError("pruned clients need to have participated, got one that did not")
    if scores is not None and scores.shape != pruned.shape:
        raise ValueError(f"scores need shape {pruned.shape}, got {scores.shape}")
    if scores is not None and np.any(np.isnan(scores[participated])):
        raise ValueError("scores of participants need to be numbers, got NaN")
