import numpy as np
import pytest
import torch
from torch.nn import functional

from fedface.attacks.inversion import Membership
from fedface.attacks.inversion.membership import compactness
from fedface.evaluation.leakage import leak_auc
from fedface.privacy import AnyRelease, EmbeddingRelease, Unprotected
from fedface.random import stream

N_PEOPLE, N_IMAGES = 40, 5
PEOPLE = np.repeat(np.arange(N_PEOPLE), N_IMAGES)
IS_MEMBER = np.arange(N_PEOPLE) % 2 == 0
KNOWN = np.arange(20)


def embeddings(release: AnyRelease) -> torch.Tensor:
    """People on the sphere; the pictures of members lie closer to each other."""
    rng = stream(0, "people")
    centres = functional.normalize(torch.randn(N_PEOPLE, 16, generator=rng))
    spread = torch.where(torch.from_numpy(IS_MEMBER), 0.05, 0.15)[PEOPLE, None]
    h = centres[PEOPLE] + spread * torch.randn(len(PEOPLE), 16, generator=rng)
    return release.release(functional.normalize(h), rng)


def auc(release: AnyRelease) -> float:
    odds = Membership()(embeddings(release), PEOPLE, KNOWN, IS_MEMBER[KNOWN])
    return leak_auc(odds[20:], IS_MEMBER[20:])  # people whose membership was not known


def test_compact_people_were_trained_on_unless_noise_hides_it() -> None:
    assert auc(Unprotected()) > 0.95
    assert abs(auc(EmbeddingRelease(epsilon=1.0, n_releases=1)) - 0.5) < 0.35


def test_compactness_by_its_definition() -> None:
    z = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    first, second = compactness(z, np.array([0, 0, 0, 1, 1]))
    centre = torch.tensor([2.0, 8 / 3])
    away = [float((row - centre).norm()) for row in z[:3]]
    assert first == pytest.approx([(0 + 0.6 + 0.8) / 3, 0, sum(away) / 3, max(away), 4.0])
    assert second == pytest.approx([1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("people", "known", "is_member", "message"),
    [
        (PEOPLE[:-1], KNOWN, IS_MEMBER[KNOWN], "shape"),
        (np.append(PEOPLE[:-1], 99), KNOWN, IS_MEMBER[KNOWN], "one of 99"),
        (PEOPLE, KNOWN, np.ones(20, dtype=bool), "known strangers"),
        (PEOPLE, KNOWN + 30, IS_MEMBER[KNOWN], "lie in"),
    ],
)
def test_impossible_knowledge_is_refused(people, known, is_member, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Membership()(embeddings(Unprotected()), people, known, is_member)
