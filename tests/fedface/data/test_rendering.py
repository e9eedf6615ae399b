import pytest
import torch

from fedface.data.face_geometry import landmarks
from fedface.data.face_parameters import (
    NUISANCE,
    Strength,
    sample_identities,
    sample_nuisance,
)
from fedface.data.rendering import render
from fedface.random import numpy_stream

NAMES = [row.name for row in NUISANCE]


def scene(n, strength=None):
    people = sample_identities(n, numpy_stream(0, "people"))
    return people, sample_nuisance(n, numpy_stream(0, "photos"), strength or Strength())


def nearest_is_the_same_person(images, people):
    distances = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(float("inf"))
    return (people[distances.argmin(1)] == people).double().mean().item()


@pytest.mark.parametrize("size", [16, 17, 32, 64])
def test_images_are_colour_and_in_range(size):
    images = render(*scene(5), size)
    assert images.shape == (5, 3, size, size) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert (images.flatten(1).std(1) > 0.05).all()
    assert (images[:, 0] - images[:, 2]).abs().mean() > 0.02


def test_nothing_in_nothing_out():
    assert render(*scene(0), 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("size", [16, 19, 32])
def test_an_image_has_the_same_bits_in_any_batch(size):
    people, photographs = scene(23)
    together = render(people, photographs, size)
    assert torch.equal(together, render(people, photographs, size))
    alone = [render(people[i : i + 1], photographs[i : i + 1], size) for i in range(23)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together.flip(0), render(people.flip(0), photographs.flip(0), size))


def test_the_number_of_threads_changes_no_bit():
    people, photographs = scene(64)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = render(people, photographs, 32)
        torch.set_num_threads(3)
        assert torch.equal(one, render(people, photographs, 32))
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("index", range(len(NUISANCE)), ids=NAMES)
def test_every_nuisance_parameter_changes_the_photograph(index):
    people, photographs = scene(8, Strength(occlusion=1.0))
    low, high = photographs.clone(), photographs.clone()
    low[:, index] = 0.1 if NUISANCE[index].one_sided else -0.6
    high[:, index] = 0.6
    change = (render(people, low, 32) - render(people, high, 32)).abs().amax((1, 2, 3))
    assert (change > 0.03).double().mean() >= 0.5


def test_every_parameter_but_the_noise_seed_has_a_finite_gradient():
    people, photographs = (values.requires_grad_() for values in scene(12, Strength(occlusion=1)))
    weights = torch.rand(12, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    (render(people, photographs, 24) * weights).sum().backward()
    assert people.grad.isfinite().all() and photographs.grad.isfinite().all()
    assert people.grad.abs().amax(0).min() > 0
    moved = photographs.grad.abs().amax(0) > 0
    assert [name for name, m in zip(NAMES, moved, strict=True) if not m] == ["noise_seed"]


def test_closing_the_eyes_changes_the_image_around_the_eye_landmarks():
    people, photographs = scene(12, Strength(occlusion=0, camera=0, pose=0.5, light=0))
    photographs[:, NAMES.index("eye_closure")] = 0
    closed = photographs.clone()
    closed[:, NAMES.index("eye_closure")] = 1
    size = 96
    change = (render(people, photographs, size) - render(people, closed, size)).abs().sum(1)
    places = (torch.arange(size) + 0.5) / size
    for eye in range(2):
        x, y = landmarks(people, photographs)[:, eye].unbind(1)
        near = (places - x[:, None]).abs()[:, None, :] < 0.12
        mass = change * near
        found_x = (mass.sum(1) * places).sum(1) / mass.sum((1, 2))
        found_y = (mass.sum(2) * places).sum(1) / mass.sum((1, 2))
        assert (found_x - x).abs().max() < 0.02
        assert (found_y - y).abs().max() < 0.02


@pytest.mark.parametrize("roll", [-1.0, 1.0])
def test_the_mouth_is_where_its_landmarks_are_when_the_head_is_rolled(roll):
    people, photographs = (
        sample_identities(10, numpy_stream(0, "people")),
        torch.zeros(10, len(NAMES)),
    )
    photographs[:, NAMES.index("roll")] = roll
    opened = photographs.clone()
    opened[:, NAMES.index("mouth_open")] = 1
    size = 64
    change = (render(people, photographs, size) - render(people, opened, size)).abs().sum(1)
    change = change * (change > 0.3)
    places = (torch.arange(size) + 0.5) / size
    found = (change.sum(1) * places).sum(1) / change.sum((1, 2))
    corners = landmarks(people, photographs)[:, 2:, 0].mean(1)
    assert ((corners - 0.5) * roll < -0.04).all()
    assert (found - corners).abs().max() < 0.03


def test_small_nuisance_leaves_people_apart_and_the_default_does_not():
    n, m = 30, 4
    people = sample_identities(n, numpy_stream(1, "people")).repeat_interleave(m, 0)
    who = torch.arange(n).repeat_interleave(m)
    small = Strength(**dict.fromkeys(Strength.model_fields, 0.1) | {"occlusion": 0.0})
    rates = {}
    for name, strength in (("small", small), ("default", Strength())):
        photographs = sample_nuisance(n * m, numpy_stream(1, "photos"), strength)
        rates[name] = nearest_is_the_same_person(render(people, photographs, 32), who)
    assert rates["small"] > 0.9
    assert rates["default"] < 0.4


def test_an_occluder_without_width_hides_nothing():
    people, plain = scene(1)[0], torch.zeros(1, len(NUISANCE))
    coloured = plain.clone()
    coloured[:, NAMES.index("occluder_red")] = 1
    coloured[:, NAMES.index("occluder_height")] = 1
    assert torch.equal(render(people, plain, 16), render(people, coloured, 16))


def test_noise_has_the_stated_deviation_and_its_seed_decides_it():
    people, photographs = scene(1)[0].expand(3, -1), torch.zeros(3, len(NUISANCE))
    photographs[:, NAMES.index("noise")] = 1
    photographs[:, NAMES.index("noise_seed")] = torch.tensor([0.1, 0.1, 0.2])
    clean = render(people, torch.zeros(3, len(NUISANCE)), 64)
    grain = (render(people, photographs, 64) - clean)[:, :, :10, :4]  # grey background: no limit
    assert torch.equal(grain[0], grain[1])
    assert (grain[0] - grain[2]).abs().mean() > 0.03
    noise = render(people, photographs, 64) - clean
    unclipped = (clean > 0.3) & (clean < 0.7)
    assert noise[unclipped].std().item() == pytest.approx(0.05, rel=0.05)
    assert abs(noise[unclipped].mean().item()) < 0.002


@pytest.mark.parametrize("size", [15, 0, -3])
def test_a_size_below_sixteen_is_refused(size):
    with pytest.raises(ValueError, match=f"needs size >= 16, got size={size}"):
        render(*scene(1), size)
