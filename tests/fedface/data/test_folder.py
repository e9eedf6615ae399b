import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedface.data.faces import Faces, Skip
from fedface.data.folder import FolderFaces, load_folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))


def write(root: Path, what: str, value: int = 0, size: tuple[int, int] = (6, 6)) -> Path:
    path = root / what
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def folder(tmp_path: Path, **n_images: int) -> Path:
    """People with 1.png, 2.png ...; the images' values count up from 10 in name order."""
    value = 10
    for name in sorted(n_images):
        for number in range(1, n_images[name] + 1):
            write(tmp_path / "faces", f"{name}/{number}.png", value)
            value += 1
    return tmp_path / "faces"


def values(faces: Faces) -> list[int]:
    return faces.images[:, 0, 0, 0].tolist()


def test_people_and_images_come_in_name_order(tmp_path: Path) -> None:
    root = folder(tmp_path, cid=1, ann=2, bob=3)
    faces = FolderFaces(root=root).load()
    assert faces.names == ("ann", "bob", "cid")
    assert faces.identities.tolist() == [0, 0, 1, 1, 1, 2]
    assert values(faces) == [10, 11, 12, 13, 14, 15]
    assert faces.images.shape == (6, 6, 6, 3)
    assert faces.skipped == ()
    assert isinstance(faces.images, np.memmap)


def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, cid=2, ann=2, bob=3)
    backwards = SimpleNamespace(
        scandir=lambda path: sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
    )
    monkeypatch.setattr("fedface.data.folder.os", backwards)
    assert values(FolderFaces(root=root).load()) == list(range(10, 17))


def test_everything_that_is_no_image_is_skipped_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=2, bob=1)
    (root / "README").write_text("about")
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / "ann" / "notes.txt").write_text("about")
    (root / "ann" / "._1.png").write_bytes(b"a resource fork")
    (root / "ann" / "old.png").mkdir()
    (root / "ann" / "0.png").write_bytes(b"broken")
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("")
    write(root, "bob/2.JPG")
    faces = FolderFaces(root=root).load()
    assert faces.names == ("ann", "bob")
    assert faces.identities.tolist() == [0, 0, 1, 1]
    assert set(faces.skipped) == {
        Skip(".git", "hidden"),
        Skip("README", "not an identity folder"),
        Skip("empty", "holds no image file"),
        Skip("texts", "holds no image file"),
        Skip("texts/a.txt", "not an image file by its ending"),
        Skip("ann/notes.txt", "not an image file by its ending"),
        Skip("ann/._1.png", "hidden"),
        Skip("ann/old.png", "not a file"),
        Skip("ann/0.png", "cannot be decoded: no image of a known format"),
    }
    assert FolderFaces(root=root).load().skipped == faces.skipped


def test_small_identities_are_dropped_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=1, bob=3, cid=2, dan=3)
    (root / "bob" / "1.png").write_bytes(b"broken")
    (root / "dan" / "4.png").write_bytes(b"broken")
    faces = FolderFaces(root=root, min_images=3).load()
    assert faces.names == ("dan",)
    assert values(faces) == [16, 17, 18]
    assert [(s.what, s.why) for s in faces.skipped] == [
        ("bob/1.png", "cannot be decoded: no image of a known format"),
        ("bob", "2 readable images, min_images=3"),
        ("dan/4.png", "cannot be decoded: no image of a known format"),
        ("2 identities", "fewer than min_images=3 files"),
    ]


def test_max_images_takes_the_first_readable_in_name_order(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=5, bob=2)
    (root / "ann" / "1.png").write_bytes(b"broken")
    faces = FolderFaces(root=root, max_images=2).load()
    assert values(faces) == [11, 12, 15, 16]
    assert faces.skipped[-1] == Skip("2 images", "beyond max_images=2 per identity")


def test_an_identity_without_readable_images_is_dropped_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=1, bob=1)
    (root / "ann" / "1.png").write_bytes(b"")
    faces = FolderFaces(root=root).load()
    assert faces.names == ("bob",)
    assert Skip("ann", "0 readable images, min_images=1") in faces.skipped


def test_sizes_that_differ_need_the_field_size(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=2)
    write(root, "bob/1.png", size=(8, 6))
    with pytest.raises(ValueError, match=r"size: null .* found ann/1.png with 6x6 and bob/1.png "):
        FolderFaces(root=root).load()
    assert FolderFaces(root=root, size=5).load().images.shape == (3, 5, 5, 3)
    # An image that is left out anyway does not matter.
    assert FolderFaces(root=root, min_images=2).load().images.shape == (2, 6, 6, 3)


def test_a_change_of_files_or_settings_is_a_new_entry(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=2, bob=2)
    assert values(FolderFaces(root=root).load()) == [10, 11, 12, 13]
    status = (root / "ann" / "2.png").stat()
    write(root, "ann/2.png", 99)
    os.utime(root / "ann" / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert values(FolderFaces(root=root).load()) == [10, 99, 12, 13]
    (root / "ann" / "1.png").rename(root / "ann" / "3.png")
    assert values(FolderFaces(root=root).load()) == [99, 10, 12, 13]
    assert values(FolderFaces(root=root, max_images=1).load()) == [99, 12]
    assert FolderFaces(root=root, size=3).load().images.shape == (4, 3, 3, 3)
    (root / "README").write_text("about")
    assert FolderFaces(root=root).load().skipped == (Skip("README", "not an identity folder"),)


def test_the_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, ann=2)
    first = FolderFaces(root=root).load()
    monkeypatch.setattr("fedface.data.folder.read_image", None)
    monkeypatch.chdir(tmp_path)
    for same in (root, Path("faces"), root / ".." / "faces"):
        assert np.array_equal(FolderFaces(root=same).load().images, first.images)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda root: None, "No such file"),
        (lambda root: root.write_text(""), "Not a directory"),
        (lambda root: root.mkdir(), "no such folder and 0 other things"),
        (lambda root: write(root, "1.png"), "no such folder and 1 other things"),
        (lambda root: (root / "ann").mkdir(parents=True), "no such folder and 1 other things"),
    ],
)
def test_a_root_without_faces_is_named(tmp_path: Path, make, found: str) -> None:
    root = tmp_path / "faces"
    make(root)
    with pytest.raises(ValueError, match=f"^folder: root needs .*{root}.*{found}"):
        FolderFaces(root=root).load()


def test_a_root_whose_identities_are_all_too_small_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, ann=1, bob=2)
    with pytest.raises(
        ValueError, match=r"root needs .*min_images=3 .* 2 identities of at most 2 files"
    ):
        FolderFaces(root=root, min_images=3).load()


def test_a_file_that_vanishes_names_the_root(tmp_path: Path, monkeypatch) -> None:
    root = folder(tmp_path, ann=1)

    def vanished(path: Path, *_: object) -> None:
        path.unlink()
        path.read_bytes()

    monkeypatch.setattr("fedface.data.folder.read_image", vanished)
    with pytest.raises(ValueError, match=r"^other: root needs .*ann/1.png: No such file"):
        load_folder("other", root, None, 1, None)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"min_images": 0}, {"max_images": 0}, {"min_images": 3, "max_images": 2}],
)
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        FolderFaces(root="x", **settings)
    assert FolderFaces(root="x", min_images=2, max_images=2).max_images == 2


def test_orl_loads() -> None:
    root = Path(os.environ.get("FEDFACE_DATA", "../shared/data")) / "orl"
    if not root.is_dir():
        pytest.skip(f"needs the ORL faces: {root} is absent, set FEDFACE_DATA")
    faces = FolderFaces(root=root, size=32).load()
    assert faces.images.shape == (400, 32, 32, 3)
    assert np.bincount(faces.identities).tolist() == [10] * 40
    assert faces.names[:3] == ("s1", "s10", "s11")
    assert faces.skipped == (Skip("README", "not an identity folder"),)
    assert (faces.images[..., 0] == faces.images[..., 2]).all()
