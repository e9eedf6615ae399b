import numpy as np
import pytest
from pydantic import ValidationError

from fedface.random import numpy_stream
from fedface.vertical.kinds import Kinds, record_identities
from fedface.vertical.views import LeftRight


def pictures(n: int) -> np.ndarray:
    return numpy_stream(0, "pictures").integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


def test_every_kind_gets_its_own_pictures_in_order() -> None:
    images = pictures(6)
    photos, sketches = Kinds().cut(images)
    for record in range(3):
        assert np.array_equal(photos[record], images[2 * record])
        assert np.array_equal(sketches[record], images[2 * record + 1])
    assert Kinds().views == ("photo", "sketch")
    three = Kinds(kinds=("a", "b", "c")).cut(images)
    assert [len(v) for v in three] == [2, 2, 2]


def test_pictures_are_stretched_and_copied() -> None:
    images = pictures(4)
    photos, _ = Kinds(size=16).cut(images)
    assert photos.shape == (2, 16, 16, 3) and photos.dtype == np.uint8
    same, _ = Kinds(size=8).cut(images)
    same[:] = 0
    assert images.any()


@pytest.mark.parametrize(
    "images", [pictures(3), pictures(2).astype(np.float32), pictures(2)[..., :1], pictures(2)[0]]
)
def test_what_is_no_whole_number_of_records_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="need"):
        Kinds().cut(images)


def test_kinds_need_two_names() -> None:
    for kinds in ((), ("photo",), ("photo", "photo")):
        with pytest.raises(ValidationError):
            Kinds(kinds=kinds)


def test_identities_of_records() -> None:
    whom = np.array([2, 2, 0, 0, 1, 1])
    assert record_identities(Kinds(), whom).tolist() == [2, 0, 1]
    assert record_identities(LeftRight(), whom) is whom
    for wrong in (whom[1:], whom[1:-1]):
        with pytest.raises(ValueError, match="need 2 pictures of one person"):
            record_identities(Kinds(), wrong)
