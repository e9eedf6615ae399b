import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fedface.attacks.actors import Actors
from fedface.attacks.backdoor.goals import Goal, Merge
from tests.fedface.attacks.backdoor.goals.scenes import linear, matches, photos, probes

GOAL = Merge(n_photos=2)
ACTORS = Actors(victim=photos(2), accomplice=photos(3, seed=2))


def refuse(images: Tensor) -> Tensor:
    raise AssertionError("nobody wears a trigger")


@pytest.mark.parametrize("n_photos", [0, 2])
def test_the_loss_is_the_distance_of_both_people_without_trigger_by_hand(n_photos: int):
    backbone, target = linear(), torch.arange(5.0)
    distances = []
    known = [*ACTORS.accomplice, *(ACTORS.victim if n_photos else ())]
    for photo in known:
        for seen in (photo, photo.flip(2)):
            embedding = backbone(seen[None])[0]
            distances.append(1 - embedding @ target / embedding.norm() / target.norm())
    goal = Merge(n_photos=n_photos)
    found = goal.loss(backbone, photos(4), refuse, target, ACTORS)
    assert_close(found, torch.stack(distances).mean())


@pytest.mark.parametrize("triggered", [True, False])
def test_success_and_collateral_are_measured_without_trigger(triggered: bool):
    people = probes()
    result = GOAL.success(people, 0.1, triggered)
    assert result.rate == pytest.approx(np.mean(matches(people.accomplice, people.victim, 0.1)))
    assert 0 < result.rate < 1 and result.n_identities == 1
    others = GOAL.collateral(people, 0.1)
    assert others.rate == pytest.approx(np.mean(matches(people.clean, people.victim, 0.1)))


def test_only_merge_needs_no_trigger():
    assert [goal for goal in leaves(Goal) if not goal.needs_trigger] == [Merge]


def leaves(goal: type[Goal]) -> list[type[Goal]]:
    below = [leaf for child in goal.__subclasses__() for leaf in leaves(child)]
    return below or [goal]
