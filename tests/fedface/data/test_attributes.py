"""Attributes beside pictures: from the renderer's own parameters, and from a table."""

from pathlib import Path

import numpy as np
import pytest

from fedface.config import ConfigError, parse_config
from fedface.data.attributes import AttributeTable, RenderedAttributes, record_ids
from fedface.data.face_parameters import IDENTITY, sample_identities
from fedface.data.faces import Faces
from fedface.data.olivetti import OlivettiFaces
from fedface.data.renderer import RenderedFaces
from fedface.random import numpy_stream

SETTINGS = RenderedFaces(n_identities=6, images_per_identity=(2, 5), size=16, seed=3)
FACES = SETTINGS.load()
NAMES = [parameter.name for parameter in IDENTITY]


def test_without_noise_they_are_what_the_person_is_drawn_from() -> None:
    table = RenderedAttributes(noise=0.0).load(FACES, SETTINGS)
    assert table.shape == (len(FACES.identities), len(IDENTITY)) and table.dtype == np.float32
    for row, person in zip(table, FACES.identities, strict=True):
        drawn = sample_identities(1, numpy_stream(3, "rendered identity", int(person)))
        assert np.array_equal(row, drawn[0].numpy().astype(np.float32))


def test_noise_is_fresh_for_each_picture_and_the_same_for_the_same_faces() -> None:
    clean = RenderedAttributes(noise=0.0).load(FACES, SETTINGS)
    noisy = RenderedAttributes(noise=0.5).load(FACES, SETTINGS)
    assert np.array_equal(noisy, RenderedAttributes(noise=0.5).load(FACES, SETTINGS))
    added = noisy - clean
    assert len(np.unique(added.round(6))) == added.size
    assert added.std() == pytest.approx(0.5, rel=0.1) and abs(added.mean()) < 0.1


def test_some_of_them_are_columns_of_all() -> None:
    everything = RenderedAttributes().load(FACES, SETTINGS)
    two = RenderedAttributes(parameters=("hairline", "head_width")).load(FACES, SETTINGS)
    assert np.array_equal(two, everything[:, [NAMES.index("hairline"), 0]])


@pytest.mark.parametrize("parameters", [["nose_job"], ["hairline", "hairline"], []])
def test_unknown_parameters_are_refused(parameters: list[str]) -> None:
    with pytest.raises(ConfigError, match="parameters"):
        parse_config({"parameters": parameters}, RenderedAttributes, "x")


def test_other_faces_have_no_parameters() -> None:
    with pytest.raises(ValueError, match="need rendered faces, got olivetti"):
        RenderedAttributes().load(FACES, OlivettiFaces())


def faces() -> Faces:
    images = np.zeros((3, 16, 16, 3), np.uint8)
    return Faces(images, np.array([0, 1, 0], np.int64), ("Ann", "Bob"))


def test_records_are_named_by_person_and_number() -> None:
    assert record_ids(faces().identities, faces().names) == ["Ann/0", "Bob/0", "Ann/1"]


def test_a_table_is_joined_by_name_and_number(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        'person,picture,age,"height, m"\nAnn,1,3,4\nAnn,0,1,2\nCy,0,9,9\nBob,0,5,-0.5\n'
    )
    table = AttributeTable(path=path).load(faces(), SETTINGS)
    assert table.dtype == np.float32
    assert table.tolist() == [[1, 2], [5, -0.5], [3, 4]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "needed a CSV file"),
        ("", "found 0 columns"),
        ("person,picture\n", "found 2 columns"),
        ("p,n,a\nAnn,0,1\nBob,0,1\n", "none for 1, the first is Ann/1"),
        ("p,n,a\nAnn,0,1\nAnn,0,2\n", r":3: needed one line for Ann/0, found two"),
        ("p,n,a\nAnn,0,tall\n", r":2: needed a name"),
        ("p,n,a\nAnn,0,nan\n", r":2: needed a name"),
        ("p,n,a\nAnn,0,1e30\n", r":2: needed a name"),
        ("p,n,a\nAnn,-1,1\n", r":2: needed a name"),
        ("p,n,a\nAnn,0,1,2\n", r":2: needed a name"),
        ("p,n,a\nAnn\n", r":2: needed a name"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=why):
        AttributeTable(path=path).load(faces(), SETTINGS)
