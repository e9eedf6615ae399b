import numpy as np
import pytest
import torch
from pydantic import ValidationError

import fedface.data.renderer as renderer_module
from fedface.data.face_parameters import Strength
from fedface.data.renderer import RenderedFaces, to_bytes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fresh(tmp_path_factory, monkeypatch, **settings):
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
    return RenderedFaces(**settings).load()


def test_faces_have_the_asked_people_images_and_size():
    faces = RenderedFaces(n_identities=4, images_per_identity=3, size=20).load()
    assert faces.images.shape == (12, 20, 20, 3) and faces.images.dtype == np.uint8
    assert faces.identities.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert faces.names == tuple(f"rendered_0_{i:05d}" for i in range(4))


def test_the_same_config_gives_the_same_bits_and_another_seed_other_people(
    tmp_path_factory, monkeypatch
):
    settings = {"n_identities": 5, "images_per_identity": (2, 4), "size": 16}
    one, two, other = (
        fresh(tmp_path_factory, monkeypatch, **settings, seed=seed) for seed in (7, 7, 8)
    )
    assert np.array_equal(one.images, two.images) and one.names == two.names
    assert one.names != other.names
    n = min(len(one), len(other))
    assert (one.images[:n] != other.images[:n]).any(axis=(1, 2, 3)).all()


def test_the_batch_size_changes_no_bit(tmp_path_factory, monkeypatch):
    settings = {"n_identities": 7, "images_per_identity": (1, 6), "size": 19}
    whole = fresh(tmp_path_factory, monkeypatch, **settings)
    for batch in (1, 4):
        monkeypatch.setattr(renderer_module, "_BATCH", batch)
        small = fresh(tmp_path_factory, monkeypatch, **settings)
        assert np.array_equal(whole.images, small.images)
        assert np.array_equal(whole.identities, small.identities)


def test_a_larger_set_begins_with_the_smaller_one():
    small = RenderedFaces(n_identities=3, images_per_identity=2, size=16).load()
    large = RenderedFaces(n_identities=4, images_per_identity=5, size=16).load()
    for person in range(3):
        ours = small.images[small.identities == person]
        assert np.array_equal(ours, large.images[large.identities == person][:2])


def test_a_range_makes_people_unequal_within_its_bounds():
    settings = RenderedFaces(n_identities=60, images_per_identity=(1, 3), size=16)
    counts = np.bincount(settings.load().identities)
    assert set(counts) == {1, 2, 3}


def test_strength_zero_gives_each_person_one_image_repeated():
    still = Strength(**dict.fromkeys(Strength.model_fields, 0.0))
    faces = RenderedFaces(n_identities=2, images_per_identity=3, size=16, strength=still).load()
    first, second = faces.images[:3], faces.images[3:]
    assert (first == first[0]).all() and (second == second[0]).all()
    assert (first[0] != second[0]).any()


def test_another_seed_gives_other_people_not_only_other_photographs():
    still = Strength(**dict.fromkeys(Strength.model_fields, 0.0))
    settings = {"n_identities": 3, "images_per_identity": 1, "size": 16, "strength": still}
    one, other = (RenderedFaces(**settings, seed=seed).load().images for seed in (0, 1))
    assert np.abs(one.astype(int) - other).mean(axis=(1, 2, 3)).min() > 2


def test_the_second_load_comes_from_the_cache(cache, monkeypatch):
    settings = RenderedFaces(n_identities=2, images_per_identity=2, size=16)
    first = settings.load()
    assert any(cache.iterdir())

    def fail(*arguments):
        raise AssertionError("drawn again")

    monkeypatch.setattr(renderer_module, "render", fail)
    again = settings.load()
    assert np.array_equal(first.images, again.images) and first.names == again.names
    for other in ({"seed": 1}, {"size": 17}, {"strength": Strength(pose=0.1)}):
        with pytest.raises(AssertionError, match="drawn again"):
            settings.model_copy(update=other).load()


def test_bytes_are_rounded_and_channels_go_last():
    images = torch.zeros(1, 3, 2, 2)
    images[0, 0, 0, 1], images[0, 2, 1, 0] = 1.0, 0.5 / 255 + 0.003
    found = to_bytes(images)
    assert found.shape == (1, 2, 2, 3) and found.dtype == np.uint8
    assert found[0, 0, 1].tolist() == [255, 0, 0] and found[0, 1, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_identities": 0}, "n_identities"),
        ({"images_per_identity": 0}, "images_per_identity"),
        ({"images_per_identity": (3, 2)}, r"needs low <= high, got \(3, 2\)"),
        ({"images_per_identity": (0, 2)}, "images_per_identity"),
        ({"size": 15}, "size"),
        ({"strength": {"pose": 2.0}}, "strength.pose"),
        ({"hardness": 1}, "hardness"),
        ({"name": "lfw"}, "name"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValidationError, match=message):
        RenderedFaces(**{"n_identities": 2, "images_per_identity": 2} | settings)
