import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedface.data.face_parameters import (
    IDENTITY,
    NUISANCE,
    Strength,
    sample_identities,
    sample_nuisance,
)
from fedface.random import numpy_stream

GROUPS = tuple(Strength.model_fields)
NONE = Strength(**dict.fromkeys(GROUPS, 0.0))


def rng(purpose="test"):
    return numpy_stream(0, purpose)


def column(name):
    return [row.name for row in NUISANCE].index(name)


def test_names_are_unique_and_groups_are_strengths():
    names = [row.name for row in (*IDENTITY, *NUISANCE)]
    assert len(names) == len(set(names))
    assert {row.group for row in NUISANCE} == set(GROUPS)


def test_identities_are_uniform_in_minus_one_to_one():
    people = sample_identities(4000, rng())
    assert people.shape == (4000, len(IDENTITY)) and people.dtype == torch.float32
    assert people.abs().max() <= 1
    assert people.mean(0).abs().max() < 0.05
    assert (people.std(0) - 3**-0.5).abs().max() < 0.03


@pytest.mark.parametrize("n", [0, 1, 7])
def test_the_first_rows_do_not_depend_on_how_many_are_drawn(n):
    assert torch.equal(sample_identities(n, rng()), sample_identities(20, rng())[:n])
    few = sample_nuisance(n, rng(), Strength())
    assert few.shape == (n, len(NUISANCE)) and few.dtype == torch.float32
    assert torch.equal(few, sample_nuisance(20, rng(), Strength())[:n])


def test_nuisance_stays_in_range_and_one_sided_is_never_negative():
    photographs = sample_nuisance(500, rng(), Strength(**dict.fromkeys(GROUPS, 1.0)))
    assert photographs.abs().max() == 1  # clipped normals touch the limit
    one_sided = torch.tensor([row.one_sided for row in NUISANCE])
    assert photographs[:, one_sided].min() >= 0
    assert (photographs[:, ~one_sided].amin(0) < 0).all()


def test_zero_strength_is_the_passport_photograph_but_for_the_noise_seed():
    photographs = sample_nuisance(50, rng(), NONE)
    photographs[:, column("noise_seed")] = 0
    assert not photographs.any()


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "occlusion"])
def test_a_strength_scales_the_draws_of_its_own_group_only(group):
    whole = sample_nuisance(40, rng(), Strength())
    half = sample_nuisance(40, rng(), Strength(**{group: getattr(Strength(), group) / 2}))
    own = torch.tensor([row.group == group and row.name != "noise_seed" for row in NUISANCE])
    assert torch.allclose(half[:, own], whole[:, own] / 2)
    assert torch.equal(half[:, ~own], whole[:, ~own])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_occlusion_strength_is_the_fraction_of_images_with_an_occluder(share):
    photographs = sample_nuisance(2000, rng(), Strength(occlusion=share))
    present = (photographs[:, column("occluder_width")] > 0).double().mean().item()
    assert abs(present - share) <= 3 * np.sqrt(share * (1 - share) / 2000)


@pytest.mark.parametrize("sample", [sample_identities, lambda n, r: sample_nuisance(n, r, NONE)])
def test_a_negative_count_is_refused(sample):
    with pytest.raises(ValueError, match="needs n >= 0, got n=-1"):
        sample(-1, rng())


@pytest.mark.parametrize("bad", [{"pose": 1.1}, {"light": -0.1}, {"blur": 0.5}])
def test_strengths_outside_zero_to_one_and_unknown_groups_are_refused(bad):
    with pytest.raises(ValidationError):
        Strength(**bad)
