import pytest
import torch

from fedface.data.face_drawing import draw_head, paint
from fedface.data.face_geometry import physical, trace
from fedface.data.face_parameters import (
    IDENTITY,
    NUISANCE,
    Strength,
    sample_identities,
    sample_nuisance,
)
from fedface.data.rendering import render
from fedface.random import numpy_stream

SIZE = 32


def people(n):
    return sample_identities(n, numpy_stream(0, "people"))


def changed(numbers, table, name, value):
    numbers = numbers.clone()
    numbers[:, [row.name for row in table].index(name)] = value
    return numbers


def photograph(identity, **nuisance):
    plain = torch.zeros(len(identity), len(NUISANCE))
    for name, value in nuisance.items():
        plain = changed(plain, NUISANCE, name, value)
    return render(identity, plain, SIZE)


@pytest.mark.parametrize("name", [row.name for row in IDENTITY])
def test_every_identity_parameter_changes_the_face(name):
    low, high = (photograph(changed(people(8), IDENTITY, name, v)) for v in (-1, 1))
    change = (low - high).abs().amax((1, 2, 3))
    assert (change > 0.03).double().mean() > 0.3  # some hide: an ear under hair, no mole


def test_the_head_covers_its_middle_and_leaves_the_upper_corners():
    identity = people(30)
    nuisance = sample_nuisance(30, numpy_stream(0, "photos"), Strength(framing=0, pose=0))
    p, q = physical(identity, nuisance)
    face, coverage = draw_head(trace(p, q, SIZE), p, q)
    assert face.shape == (30, 3, SIZE, SIZE) and coverage.shape == (30, 1, SIZE, SIZE)
    assert coverage.min() >= 0 and coverage.max() <= 1 and face.min() >= 0
    assert (coverage[:, :, 12:22, 12:20] == 1).all()
    assert (coverage[:, :, 0, [0, -1]] == 0).all()


def test_light_from_a_side_brightens_that_side():
    identity = changed(people(10), IDENTITY, "hair_parting", 0)
    left = photograph(identity, light_x=-1, light_strength=1).mean(1)
    right = photograph(identity, light_x=1, light_strength=1).mean(1)
    half = SIZE // 2
    assert (left[:, 8:28, 6:half].mean((1, 2)) > right[:, 8:28, 6:half].mean((1, 2))).all()
    assert (left[:, 8:28, half:-6].mean((1, 2)) < right[:, 8:28, half:-6].mean((1, 2))).all()


def test_melanin_darkens_the_cheeks():
    light, dark = (
        photograph(changed(people(10), IDENTITY, "melanin", v))[:, :, 18:21, 8:11] for v in (-1, 1)
    )
    assert (light.mean((2, 3)) > dark.mean((2, 3)) + 0.1).all()


def test_turning_the_head_moves_the_nose_against_the_eyes():
    """The nostrils lie to the right of the eyes' middle when the head turns right."""
    narrow, wide = (changed(people(10), IDENTITY, "nose_width", v) for v in (-1, 1))
    columns = torch.arange(SIZE) + 0.5 - SIZE / 2

    def middle(yaw):
        change = (photograph(narrow, yaw=yaw) - photograph(wide, yaw=yaw)).abs().sum(1)[:, 17:24]
        return (change.sum(1) * columns).sum(1) / change.sum((1, 2))

    plain = middle(0.0)
    for yaw in (-0.6, 0.6):
        shift = (middle(yaw) - plain) / yaw
        assert (shift > 0).all() and shift.mean() > 0.3


def test_paint_mixes_by_coverage():
    canvas, colour = torch.full((1, 3, 1, 3), 0.2), torch.full((1, 3, 1, 1), 0.6)
    found = paint(canvas, colour, torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.2, 0.4, 0.6]))
