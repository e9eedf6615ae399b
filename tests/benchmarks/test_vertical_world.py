from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedface.privacy import EmbeddingRelease
from tests.benchmarks.by_path import script

script("measuring")
worlds = script("vertical_world")
TINY = worlds.SIZES["tiny"]


@pytest.fixture(scope="module")
def world():
    return worlds.world_of(TINY, 0)


def test_everybody_belongs_to_one_group(world) -> None:
    for number, group in enumerate(worlds.GROUPS):
        records = world.records(group)
        assert len(records) == TINY.people[number] * TINY.photographs
        assert len(torch.unique(world.people[records])) == TINY.people[number]
    every = torch.cat([world.records(group) for group in worlds.GROUPS])
    assert torch.equal(every.sort().values, torch.arange(len(world.people)))
    later = world.records("enrolled", later=True)
    assert len(later) == TINY.people[0] * TINY.later
    assert not set(later.tolist()) & set(world.records("enrolled", later=False).tolist())


def test_real_people_are_drawn_by_the_seed(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    for person in range(7):
        folder = tmp_path / "lfw" / f"P_{person}"
        folder.mkdir(parents=True)
        for photo in range(3):
            shade = rng.integers(20, 230, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(shade).save(folder / f"P_{person}_{photo + 1:04d}.png")
    monkeypatch.setenv("FEDFACE_DATA", str(tmp_path))
    size = replace(TINY, faces="lfw", people=(2, 1, 1, 1, 1), photographs=3, later=1, pixels=8)
    world, again, other = (worlds.world_of(size, seed) for seed in (0, 0, 1))
    assert torch.equal(world.own, again.own) and not torch.equal(world.own, other.own)
    assert world.people.tolist() == [k for k in range(6) for _ in range(3)]
    assert len(torch.unique(world.own.flatten(1), dim=0)) == 18
    with pytest.raises(ValueError, match="needs 8 people with 3 photographs, found 7"):
        worlds.world_of(replace(size, people=(4, 1, 1, 1, 1)), 0)


def test_the_parties_see_different_halves(world) -> None:
    assert world.own.shape == world.other.shape == (len(world.people), 3, 32, 32)
    assert not torch.equal(world.own, world.other)


def test_labels_count_from_zero_within_a_group(world) -> None:
    for group, n in (("enrolled", 4), ("public", 4)):
        records = world.records(group)
        people = worlds.labels_of(world, "people", TINY, group)[records]
        assert torch.unique(people).tolist() == list(range(n))
    listed = worlds.labels_of(world, "watch_list", TINY)[world.records("enrolled")]
    assert listed.sum() == TINY.photographs  # one person of four


def test_gradients_are_what_came_back_in_every_epoch(world) -> None:
    federation = worlds.train(world, TINY, worlds.Protection("none"), 0)
    n_trained = len(world.records("enrolled", later=False))
    assert federation.gradients.shape == (TINY.epochs, n_trained, TINY.dim)
    assert bool((federation.gradients.norm(dim=2) > 0).all())
    assert not torch.equal(federation.initial.fc.weight, federation.passive.bottom.fc.weight)
    again = worlds.train(world, TINY, worlds.Protection("none"), 0)
    assert torch.equal(federation.gradients, again.gradients)


def test_a_frozen_bottom_model_releases_once_and_gets_nothing_back(world) -> None:
    protection = worlds.Protection("frozen", 4.0, adaptive=True, frozen=True)
    federation = worlds.train(world, TINY, protection, 0)
    assert federation.gradients is None
    release = federation.passive.settings.release
    assert isinstance(release, EmbeddingRelease) and release.n_releases == 1
    trained = world.records("enrolled", later=False)
    assert federation.passive.ledger.counts[trained].tolist() == [1] * len(trained)
    assert federation.passive.ledger.counts[world.records("stranger")].sum() == 0
    z = federation.released(world, trained, 0)
    assert torch.equal(z, federation.released(world, trained, 1))  # repeated, not drawn anew


def test_a_noisy_federation_spends_its_whole_budget_and_no_more(world) -> None:
    protection = worlds.Protection("noise", 4.0)
    federation = worlds.train(world, TINY, protection, 0)
    federation.released(world, world.records("enrolled", later=False), 0)
    assert federation.passive.ledger.spent().replace_one == pytest.approx(4.0, rel=1e-6)
