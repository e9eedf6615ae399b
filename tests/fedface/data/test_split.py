from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedface.data.faces import Faces
from fedface.data.split import Split, SplitByIdentity, require_disjoint, split_by_identity
from fedface.random import numpy_stream


def some_faces(n_identities: int, n_images: int = 3) -> Faces:
    identities = np.tile(np.arange(n_identities), n_images)
    images = np.zeros((len(identities), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = identities
    images[:, 0, 0, 1] = np.arange(len(identities)) // n_identities
    return Faces(images, identities, tuple(f"p{i}" for i in range(n_identities)))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_everyone_lands_in_exactly_one_group(
    n_test: int, n_calibration: int, n_train: int, seed: int
) -> None:
    faces = some_faces(n_test + n_calibration + n_train)
    config = SplitByIdentity(test=n_test, calibration=n_calibration)
    split = split_by_identity(faces, config, numpy_stream(seed, "split"))
    groups = (split.test, split.calibration, split.train)
    assert [g.n_identities for g in groups] == [n_test, n_calibration, n_train]
    assert sorted(name for g in groups for name in g.names) == sorted(faces.names)
    assert sum(map(len, groups)) == len(faces)
    for group in groups:
        shown = [group.names[i] for i in group.identities]
        assert shown == [f"p{value}" for value in group.images[:, 0, 0, 0]]
        assert np.bincount(group.identities).tolist() == [3] * group.n_identities
        assert (np.diff(group.images[:, 0, 0, 1].astype(int)) >= 0).all()  # order is kept


def test_the_seed_decides() -> None:
    faces, config = some_faces(30), SplitByIdentity(test=10, calibration=5)

    def names(seed: int) -> tuple[str, ...]:
        return split_by_identity(faces, config, numpy_stream(seed, "split")).test.names

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_every_assignment_is_equally_likely() -> None:
    faces, config = some_faces(3, 1), SplitByIdentity(test=1, calibration=1)
    rng, n = numpy_stream(0, "test"), 1800
    drawn = [split_by_identity(faces, config, rng) for _ in range(n)]
    counts = dict.fromkeys(permutations(faces.names), 0)
    for split in drawn:
        counts[(*split.test.names, *split.calibration.names, *split.train.names)] += 1
    expected = n / 6
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 20.5  # 99.9 % of chi-squared with 5 degrees of freedom


def test_the_source_is_untouched_and_not_shared() -> None:
    faces = some_faces(6)
    faces.images.flags.writeable = False
    split = split_by_identity(faces, SplitByIdentity(test=2, calibration=2), numpy_stream(0))
    n_bytes = sum(g.images.nbytes for g in (split.train, split.calibration, split.test))
    assert n_bytes == faces.images.nbytes


@pytest.mark.parametrize("n_identities", [1, 4, 5])
def test_too_few_identities_are_named(n_identities: int) -> None:
    config = SplitByIdentity(test=3, calibration=2)
    with pytest.raises(ValueError, match=rf"= 6, got n_identities={n_identities}, test=3, cal"):
        split_by_identity(some_faces(n_identities), config, numpy_stream(0))
    assert split_by_identity(some_faces(6), config, numpy_stream(0)).train.n_identities == 1


@pytest.mark.parametrize("field", ["test", "calibration"])
def test_counts_need_to_be_positive(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        SplitByIdentity(**{"test": 1, "calibration": 1, field: 0})


def test_one_person_under_two_labels_is_refused() -> None:
    faces = replace(some_faces(3), names=("ann", "bob", "ann"))
    config = SplitByIdentity(test=1, calibration=1)
    with pytest.raises(ValueError, match=r"no identity in common, got 1 shared, .*'ann'"):
        split_by_identity(faces, config, numpy_stream(0))


def test_a_split_checks_itself() -> None:
    a, b = some_faces(2), replace(some_faces(1), names=("zoe",))
    with pytest.raises(ValueError, match=r"train and test need .* got 2 shared, .* 'p0'"):
        Split(train=a, calibration=b, test=a)


@pytest.mark.parametrize(
    ("groups", "clash"),
    [
        ({"a": ["x"], "b": ["y"], "c": []}, None),
        ({"a": ["x"], "b": ["y"], "c": ["z", "y"]}, "b and c"),
        ({"a": ["x"], "b": ["y"], "c": ("x",)}, "a and c"),
        ({"a": {"x"}, "b": {"x"}}, "a and b"),
        ({}, None),
    ],
)
def test_require_disjoint(groups: dict[str, list[str]], clash: str | None) -> None:
    if clash is None:
        require_disjoint(groups)
    else:
        with pytest.raises(ValueError, match=f"^{clash} need to have no identity in common"):
            require_disjoint(groups)
