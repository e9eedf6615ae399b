import numpy as np
import pytest
from numpy.typing import NDArray

from fedface.data.faces import Faces, Skip


def images(n: int) -> NDArray[np.uint8]:
    return np.arange(n * 2 * 4 * 3).reshape(n, 2, 4, 3).astype(np.uint8)


def faces(*identities: int, names: tuple[str, ...] = ("Ada", "Bob", "Cyd")) -> Faces:
    return Faces(images(len(identities)), np.array(identities, np.int64), names)


def test_faces_count_images_and_people():
    group = faces(2, 0, 1, 0)
    assert len(group) == 4
    assert group.n_identities == 3
    assert group.skipped == ()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 4, 4), "uint8"), ((2, 4, 4, 1), "uint8"), ((2, 3, 4, 4), "uint8"), ((2, 4, 4, 3), "f4")],
)
def test_images_of_another_shape_or_type_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"images need shape \(n, height, width, 3\) and dtype"):
        Faces(np.zeros(shape, dtype), np.zeros(2, np.int64), ("Ada",))


@pytest.mark.parametrize(
    "identities",
    [np.zeros(3, np.int64), np.zeros((2, 1), np.int64), np.zeros(2), np.zeros(2, np.int32)],
)
def test_identities_of_another_shape_or_type_are_refused(identities):
    with pytest.raises(ValueError, match=r"identities need shape \(2,\) and dtype int64, got"):
        Faces(images(2), identities, ("Ada",))


@pytest.mark.parametrize("identities", [(0, 1), (0, 2), (0, 1, 3), (-1, 0, 1, 2), (1, 2, 3)])
def test_every_name_needs_an_image_and_every_image_a_name(identities):
    with pytest.raises(ValueError, match=r"identities need to be 0\.\.2, each with an image"):
        faces(*identities)


def test_selecting_keeps_images_with_their_names():
    group = faces(2, 0, 1, 0, 2)
    chosen = group.select(np.array([4, 1, 0]))
    assert [chosen.names[i] for i in chosen.identities] == ["Cyd", "Ada", "Cyd"]
    assert np.array_equal(chosen.images, group.images[[4, 1, 0]])
    assert chosen.names == ("Ada", "Cyd")
    assert chosen.identities.dtype == np.int64


def test_selecting_nothing_gives_no_faces():
    nobody = faces(2, 0, 1).select(np.array([], np.int64))
    assert len(nobody) == nobody.n_identities == 0


def test_selecting_leaves_the_source_alone():
    group = faces(2, 0, 1)
    group.select(np.array([0])).images[:] = 0
    assert np.array_equal(group.images, images(3))


def test_what_was_skipped_is_kept_with_its_reason():
    skip = Skip("Ada/3.jpg", "no image")
    group = Faces(images(1), np.zeros(1, np.int64), ("Ada",), (skip,))
    assert group.skipped == (skip,)
