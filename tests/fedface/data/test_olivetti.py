import os
from pathlib import Path

import joblib
import numpy as np
import pytest

from fedface.data.olivetti import OlivettiFaces


def photo(number: int) -> np.ndarray:
    """A ramp that differs from photo to photo; the set spans 0..255, as scikit-learn scales it."""
    return np.arange(64 * 64).reshape(64, 64) % 201 + number % 56


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's cache of a made-up set: :func:`photo`, each stored column by column."""
    home = tmp_path_factory.mktemp("scikit_learn_data")
    pixels = np.stack([photo(number).T.reshape(-1) for number in range(400)])
    between = pixels - 0.4 * ((pixels > 0) & (pixels < 255))  # rounds to the photo, floor does not
    joblib.dump((between / 255).astype(np.float32), home / "olivetti_py3.pkz", compress=6)
    return home


def test_grey_becomes_three_equal_channels_of_the_same_values(home: Path) -> None:
    faces = OlivettiFaces(data_home=home).load()
    assert faces.images.shape == (400, 64, 64, 3)
    for number in (0, 1, 399):
        for channel in range(3):
            assert np.array_equal(faces.images[number, ..., channel], photo(number))
    assert np.array_equal(faces.identities, np.arange(400) // 10)
    assert faces.names[0] == "olivetti_00"
    assert faces.names[-1] == "olivetti_39"


def test_size_resizes(home: Path) -> None:
    assert OlivettiFaces(data_home=home, size=20).load().images.shape == (400, 20, 20, 3)


def test_an_absent_set_is_named_and_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"olivetti: data_home needs .*found {tmp_path}"):
        OlivettiFaces(data_home=tmp_path).load()


def test_the_real_set_loads() -> None:
    data = Path(os.environ.get("FEDFACE_DATA", "../shared/data"))
    home = data / "olivetti" / "scikit_learn_data"
    if not home.is_dir():
        pytest.skip(f"needs the Olivetti faces: {home} is absent, set FEDFACE_DATA")
    faces = OlivettiFaces(data_home=home).load()
    assert np.bincount(faces.identities).tolist() == [10] * 40
    assert 60 < faces.images.mean() < 200
    assert faces.images.max() > 200
