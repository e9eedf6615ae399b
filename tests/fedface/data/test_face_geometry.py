import math

import numpy as np
import pytest
import torch

from fedface.data.face_geometry import ellipse, inside, landmarks, physical, trace, turn, wave
from fedface.data.face_parameters import (
    IDENTITY,
    NUISANCE,
    Strength,
    sample_identities,
    sample_nuisance,
)
from fedface.random import numpy_stream


def scene(n, strength=None):
    people = sample_identities(n, numpy_stream(0, "people"))
    rng = numpy_stream(0, "photographs")
    return people, sample_nuisance(n, rng, strength or Strength(pose=1, framing=1))


def landmark_by_definition(table, point):
    """Rotation matrices on the head as a unit sphere, then a similarity about the eyes."""

    def on_sphere(u, v):
        e, f = u / table["head_width"], (v + 0.06) / table["head_height"]
        return np.array([e, f, math.sqrt(max(0, 1 - e * e - f * f))])

    yaw, pitch, roll = table["yaw"], table["pitch"], table["roll"]
    turn_yaw = np.array(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    )
    front, side = math.cos(pitch), math.sin(pitch)
    turn_pitch = np.array([[1, 0, 0], [0, front, side], [0, -side, front]])
    axes = np.array([table["head_width"], table["head_height"], 1])
    seen, middle = ((turn_pitch @ turn_yaw @ on_sphere(*p) * axes)[:2] for p in (point, (0, -0.08)))
    x, y = table["scale"] * (seen - middle)
    px = x * math.cos(roll) - y * math.sin(roll) + table["shift_x"]
    py = x * math.sin(roll) + y * math.cos(roll) + table["shift_y"] - 0.08
    return (px + 1) / 2, (py + 1) / 2


def test_landmarks_are_the_rotated_points():
    people, photographs = scene(20)
    found = landmarks(people, photographs)
    assert found.shape == (20, 4, 2)
    for i in range(20):
        values = {
            row.name: row.centre + row.spread * numbers[i, k].item()
            for numbers, rows in ((people, IDENTITY), (photographs, NUISANCE))
            for k, row in enumerate(rows)
        }
        corner_u = values["mouth_width"] * (1 + 1.5 * values["smile"])
        corner_v = values["mouth_height"] - values["mouth_curve"] - values["smile"]
        eye = values["eye_spacing"]
        points = [(-eye, -0.08), (eye, -0.08), (-corner_u, corner_v), (corner_u, corner_v)]
        expected = [landmark_by_definition(values, point) for point in points]
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-4)


def test_the_plain_photograph_has_its_eyes_on_the_arcface_template():
    people = sample_identities(500, numpy_stream(0, "people"))
    eyes = landmarks(people, torch.zeros(500, len(NUISANCE)))[:, :2]
    torch.testing.assert_close(eyes[..., 1], torch.full((500, 2), 0.46), atol=1e-5, rtol=0)
    torch.testing.assert_close(eyes[..., 0].mean(0), torch.tensor([0.34, 0.66]), atol=2e-3, rtol=0)


def test_pose_and_framing_keep_the_eyes_near_the_template_on_average():
    people, photographs = scene(500, Strength())
    eyes = landmarks(people, photographs)[:, :2].mean(0)
    expected = torch.tensor([[0.34, 0.46], [0.66, 0.46]])
    torch.testing.assert_close(eyes, expected, atol=0.02, rtol=0)


def test_turn_undoes_trace_on_the_front_of_the_head():
    p, q = physical(*scene(6))
    head = trace(p, q, 32)
    x, y = turn(head.u, head.v, p, q)
    shown = (head.depth > 0.05) & (head.normal[2] > 0.05)
    assert shown.float().mean() > 0.3
    assert torch.allclose(x[shown], head.x[shown], atol=1e-3)
    assert torch.allclose(y[shown], head.y[shown], atol=1e-3)


def test_normals_have_length_one():
    head = trace(*physical(*scene(3)), 20)
    length = sum(axis * axis for axis in head.normal)
    assert torch.allclose(length, torch.ones_like(length), atol=1e-5)


def test_ellipse_is_the_distance_near_its_rim():
    angle = torch.linspace(0, 2 * math.pi, 2000)
    rim = torch.stack([0.6 * angle.cos(), 0.3 * angle.sin()], 1)
    outwards = torch.stack([angle.cos() / 0.6, angle.sin() / 0.3], 1)
    outwards = outwards / outwards.norm(dim=1, keepdim=True)
    for distance in (-0.02, 0.0, 0.02):
        points = rim[::40] + distance * outwards[::40]
        found = ellipse(points[:, 0], points[:, 1], 0.6, 0.3)
        torch.testing.assert_close(found, torch.full_like(found, distance), atol=2e-3, rtol=0)


def test_inside_is_a_soft_step():
    distance = torch.tensor([-1.0, -0.06, -0.05, 0.0, 0.05, 0.06, 1.0])
    assert inside(distance, 0.1).tolist() == [1, 1, 1, 0.5, 0, 0, 0]
    assert (inside(torch.linspace(-0.1, 0.1, 50), 0.1).diff() <= 0).all()


def test_wave_is_near_the_sine_and_has_period_one():
    turns = torch.linspace(-1, 1, 401)
    assert (wave(turns) - torch.sin(2 * math.pi * turns)).abs().max() < 0.06
    assert torch.allclose(wave(turns + 3), wave(turns), atol=1e-5)


@pytest.mark.parametrize(
    ("people", "photographs", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, len(NUISANCE)), r"identity needs shape .*got \(2, 3\)"),
        (torch.zeros(2, len(IDENTITY)), torch.zeros(1, len(NUISANCE)), "nuisance needs shape"),
        (torch.full((1, len(IDENTITY)), 1.5), torch.zeros(1, len(NUISANCE)), "got 1.5"),
        (torch.zeros(1, len(IDENTITY)), torch.full((1, len(NUISANCE)), math.nan), "got nan"),
    ],
)
def test_wrong_shapes_and_numbers_are_refused_by_name(people, photographs, message):
    with pytest.raises(ValueError, match=message):
        landmarks(people, photographs)
