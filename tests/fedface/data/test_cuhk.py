import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedface.data.cuhk import CuhkFaces


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))


def cuhk(tmp_path: Path) -> Path:
    """Two people in train, three in test; value 100 for test, 10 per person, 1 for a sketch."""
    root = tmp_path / "cuhk_sketch"
    for s, (split, n) in enumerate((("train", 2), ("test", 3))):
        for k, kind in enumerate(("photos", "sketches")):
            (root / split / kind).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (8, 10), (100 * s + 10 * i + k,) * 3)
                if (split, kind) == ("train", "sketches"):
                    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
                image.save(root / split / kind / f"{i:02d}.png")
    return root


def values(images: np.ndarray) -> list[int]:
    return images[:, 4, 4, 0].tolist()


def test_photo_and_sketch_of_each_person_in_order(tmp_path: Path) -> None:
    faces = CuhkFaces(root=cuhk(tmp_path)).load()
    assert values(faces.images) == [0, 1, 10, 11, 100, 101, 110, 111, 120, 121]
    assert faces.identities.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert faces.names == (
        *("cuhk_train_00", "cuhk_train_01"),
        *("cuhk_test_00", "cuhk_test_01", "cuhk_test_02"),
    )
    assert faces.images.shape == (10, 10, 8, 3)


def test_views_are_aligned(tmp_path: Path) -> None:
    photos, sketches = CuhkFaces(root=cuhk(tmp_path), split="test", size=4).views()
    assert photos.images[:, 0, 0, 0].tolist() == [100, 110, 120]
    assert sketches.images[:, 0, 0, 0].tolist() == [101, 111, 121]
    assert photos.names == sketches.names == ("cuhk_test_00", "cuhk_test_01", "cuhk_test_02")
    assert photos.identities.tolist() == sketches.identities.tolist() == [0, 1, 2]
    assert photos.images.shape == (3, 4, 4, 3)


def test_a_photo_without_its_sketch_is_named(tmp_path: Path) -> None:
    root = cuhk(tmp_path)
    (root / "test" / "sketches" / "01.png").unlink()
    with pytest.raises(ValueError, match=r"3 photos and 2 sketches, .*\['01.png'\]"):
        CuhkFaces(root=root).load()
    assert len(CuhkFaces(root=root, split="train").load()) == 4


def test_a_missing_folder_or_a_broken_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cuhk: root needs train/photos, found .*No such file"):
        CuhkFaces(root=tmp_path / "nothing").load()
    root = cuhk(tmp_path)
    (root / "train" / "photos" / "00.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cuhk: needed an image, found .*00.png: cannot be"):
        CuhkFaces(root=root).load()


def test_the_real_set_loads() -> None:
    root = Path(os.environ.get("FEDFACE_DATA", "../shared/data")) / "cuhk_sketch"
    if not root.is_dir():
        pytest.skip(f"needs the CUHK photo-sketch pairs: {root} is absent, set FEDFACE_DATA")
    photos, sketches = CuhkFaces(root=root, split="train", size=32).views()
    assert len(photos) == len(sketches) == 88
    photo, sketch = (v.images.reshape(88, -1).astype(float) for v in (photos, sketches))
    grey = [x.reshape(88, 32 * 32, 3).mean(2) for x in (photo, sketch)]
    unit = [(g - g.mean(1, keepdims=True)) / g.std(1, keepdims=True) for g in grey]
    similar = unit[0] @ unit[1].T / 1024
    assert np.median((similar >= np.diag(similar)[:, None]).sum(1)) <= 5  # rows do belong together
