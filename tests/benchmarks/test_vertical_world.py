import pytest
import torch

from fedface.privacy import EmbeddingRelease
from tests.benchmarks.by_path import script

script("measuring")
world_of = script("vertical_world")
TINY = world_of.SIZES["tiny"]


@pytest.fixture(scope="module")
def world():
    return world_of.render(TINY, 0)


def test_everybody_belongs_to_one_group(world) -> None:
    for number, group in enumerate(world_of.GROUPS):
        records = world.records(group)
        assert len(records) == TINY.people[number] * TINY.photographs
        assert len(torch.unique(world.people[records])) == TINY.people[number]
    every = torch.cat([world.records(group) for group in world_of.GROUPS])
    assert torch.equal(every.sort().values, torch.arange(len(world.people)))
    later = world.records("enrolled", later=True)
    assert len(later) == TINY.people[0] * TINY.later
    assert not set(later.tolist()) & set(world.records("enrolled", later=False).tolist())


def test_the_parties_see_different_halves(world) -> None:
    assert world.own.shape == world.other.shape == (len(world.people), 3, 32, 32)
    assert not torch.equal(world.own, world.other)


def test_labels_count_from_zero_within_a_group(world) -> None:
    for group, n in (("enrolled", 4), ("public", 4)):
        records = world.records(group)
        people = world_of.labels_of(world, "people", TINY, group)[records]
        assert torch.unique(people).tolist() == list(range(n))
    listed = world_of.labels_of(world, "watch_list", TINY)[world.records("enrolled")]
    assert listed.sum() == TINY.photographs  # one person of four


def test_gradients_are_what_came_back_in_every_epoch(world) -> None:
    federation = world_of.train(world, TINY, world_of.Protection("none"), 0)
    n_trained = len(world.records("enrolled", later=False))
    assert federation.gradients.shape == (TINY.epochs, n_trained, TINY.dim)
    assert bool((federation.gradients.norm(dim=2) > 0).all())
    assert not torch.equal(federation.initial.fc.weight, federation.passive.bottom.fc.weight)
    again = world_of.train(world, TINY, world_of.Protection("none"), 0)
    assert torch.equal(federation.gradients, again.gradients)


def test_a_frozen_bottom_model_releases_once_and_gets_nothing_back(world) -> None:
    protection = world_of.Protection("frozen", 4.0, adaptive=True, frozen=True)
    federation = world_of.train(world, TINY, protection, 0)
    assert federation.gradients is None
    release = federation.passive.settings.release
    assert isinstance(release, EmbeddingRelease) and release.n_releases == 1
    trained = world.records("enrolled", later=False)
    assert federation.passive.ledger.counts[trained].tolist() == [1] * len(trained)
    assert federation.passive.ledger.counts[world.records("stranger")].sum() == 0
    z = federation.released(world, trained, 0)
    assert torch.equal(z, federation.released(world, trained, 1))  # repeated, not drawn anew


def test_a_noisy_federation_spends_its_whole_budget_and_no_more(world) -> None:
    protection = world_of.Protection("noise", 4.0)
    federation = world_of.train(world, TINY, protection, 0)
    federation.released(world, world.records("enrolled", later=False), 0)
    assert federation.passive.ledger.spent().replace_one == pytest.approx(4.0, rel=1e-6)
