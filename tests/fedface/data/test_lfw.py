import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedface.data.lfw import LfwFaces, LfwPairs, people_folder, read_pairs

PEOPLE = {"Ann_A": 3, "Bob": 2, "Cid-C": 1, "Dan": 2}
PAIRS = """2\t1
Ann_A\t1\t3
Bob\t2\tCid-C\t1
Dan\t1\t2
Cid-C\t1\tAnn_A\t2
"""


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))


def lfw(tmp_path: Path, inner: str = "images112") -> Path:
    """A small LFW; person p's photo i is filled with 20 p + i."""
    root = tmp_path / "lfw_root"
    for person, (name, n_photos) in enumerate(PEOPLE.items()):
        (root / inner / name).mkdir(parents=True)
        for number in range(1, n_photos + 1):
            image = Image.new("RGB", (8, 8), (20 * person + number,) * 3)
            image.save(root / inner / name / f"{name}_{number:04d}.jpg", quality=100)
    (root / "pairs.txt").write_text(PAIRS)
    return root


def values(images: np.ndarray) -> list[int]:
    return images[:, 4, 4, 0].tolist()


def real_lfw() -> Path:
    root = Path(os.environ.get("FEDFACE_DATA", "../shared/data")) / "lfw"
    if not root.is_dir():
        pytest.skip(f"needs LFW: {root} is absent, set FEDFACE_DATA")
    return root


@pytest.mark.parametrize("inner", ["", "images112", "lfw", "lfw/images112"])
def test_people_are_found_in_each_layout(tmp_path: Path, inner: str) -> None:
    root = lfw(tmp_path, inner)
    assert people_folder(root) == root / inner
    faces = LfwFaces(root=root, min_images=2, max_images=2).load()
    assert faces.names == ("Ann_A", "Bob", "Dan")
    assert values(faces.images) == [1, 2, 21, 22, 61, 62]
    assert len(LfwPairs(root=root).load()) == 4


def test_pairs_show_the_photos_that_the_file_names(tmp_path: Path) -> None:
    pairs = LfwPairs(root=lfw(tmp_path)).load()
    assert values(pairs.images[pairs.left]) == [1, 22, 61, 41]
    assert values(pairs.images[pairs.right]) == [3, 41, 62, 2]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert pairs.people == (
        ("Ann_A", "Ann_A"),
        ("Bob", "Cid-C"),
        ("Dan", "Dan"),
        ("Cid-C", "Ann_A"),
    )
    assert len(pairs.images) == 7  # each photo once
    assert pairs.without(["Cid-C", "Dan"]).people == (("Ann_A", "Ann_A"),)


def test_pairs_are_decoded_once_and_follow_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lfw(tmp_path)
    LfwPairs(root=root).load()
    with monkeypatch.context() as patch:
        patch.setattr("fedface.data.lfw.read_image", None)
        LfwPairs(root=root).load()
    assert LfwPairs(root=root, size=4).load().images.shape == (7, 4, 4, 3)
    (root / "pairs.txt").write_text("1\nAnn_A\t1\t2\nBob\t1\tDan\t1\n")
    pairs = LfwPairs(root=root).load()
    assert values(pairs.images[pairs.left]) == [1, 21]
    (root / "pairs.txt").write_text("1\nAnn_A\t2\t1\nBob\t1\tDan\t1\n")
    pairs = LfwPairs(root=root).load()
    assert values(pairs.images[pairs.left]) == [2, 21]
    photo = root / "images112" / "Ann_A" / "Ann_A_0001.jpg"
    Image.new("RGB", (8, 8), (200,) * 3).save(photo, quality=100)
    os.utime(photo, ns=(1, 1))
    pairs = LfwPairs(root=root).load()
    assert values(pairs.images[pairs.right]) == [200, 61]


def test_a_single_count_is_one_fold_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairsDev.txt"
    path.write_bytes(b"2\r\nA\t1\t2\r\nB\t3\t4\r\nA\t1\tB\t2\r\nB\t1\tC\t12\r\n\r\n")
    lines = read_pairs(path)
    assert [(line.left, line.right, line.fold, line.line) for line in lines] == [
        (("A", 1), ("A", 2), 0, 2),
        (("B", 3), ("B", 4), 0, 3),
        (("A", 1), ("B", 2), 0, 4),
        (("B", 1), ("C", 12), 0, 5),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: needed 'n_folds n_per_fold' or 'n_per_fold', found \[\]"),
        ("a b\n", ":1: needed 'n_folds"),
        ("1 2 3\n", ":1: needed 'n_folds"),
        ("0\n", ":1: needed 'n_folds"),
        ("-1\n", ":1: needed 'n_folds"),
        ("1 1\nA 1 2\n", "needed 2 pairs for 1 folds of 2 x 1, found 1"),
        ("1\nA 1 2\nA 1 B 1\nA 1 B 2\n", "needed 2 pairs .* found 3"),
        ("1\nA 1 B 1\nA 1 2\n", ":2: needed a genuine pair .*found 'A 1 B 1'"),
        ("1\nA 1 2\nA 1 2\n", ":3: needed an impostor pair .*found 'A 1 2'"),
        ("1\n\nA 1 B 2\n", ":2: needed a genuine pair .*found ''"),
        ("1\nA 1\nA 1 B 2\n", ":2: needed a genuine pair"),
        ("1\nA 1 1\nA 1 B 2\n", ":2: needed a genuine pair .*two photos"),
        ("1\nA 1 2\nA 1 A 2\n", ":3: needed an impostor pair .*two people"),
        ("1\nA 1 x\nA 1 B 2\n", ":2: needed a genuine"),
        ("1\nA 0 1\nA 1 B 2\n", ":2: needed a genuine"),
        ("1\nA 1 ²\nA 1 B 2\n", ":2: needed a genuine"),
        ("1\n../A 1 2\nA 1 B 2\n", ":2: needed a genuine"),
        ("1\nA 1 2\nA 1 .. 2\n", ":3: needed an impostor"),
    ],
)
def test_a_broken_pairs_file_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"pairs.txt.*{message}"):
        read_pairs(path)


def test_a_missing_or_binary_pairs_file_is_named(tmp_path: Path) -> None:
    root = lfw(tmp_path)
    with pytest.raises(ValueError, match=r"other.txt: needed an LFW pairs file, found: No such"):
        LfwPairs(root=root, pairs="other.txt").load()
    (root / "pairs.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"pairs.txt: needed UTF-8 text"):
        LfwPairs(root=root).load()


def test_an_image_that_is_missing_or_broken_names_the_line(tmp_path: Path) -> None:
    root = lfw(tmp_path)
    photo = root / "images112" / "Cid-C" / "Cid-C_0001.jpg"
    photo.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"pairs.txt:3: needed an image, found .*Cid-C_0001.jpg"):
        LfwPairs(root=root).load()
    photo.unlink()
    with pytest.raises(ValueError, match=r"pairs.txt:3: needed .*Cid-C_0001.jpg, found: No such"):
        LfwPairs(root=root).load()


def test_photos_that_differ_need_the_field_size(tmp_path: Path) -> None:
    root = lfw(tmp_path)
    Image.new("RGB", (9, 8)).save(root / "images112" / "Dan" / "Dan_0002.jpg")
    with pytest.raises(ValueError, match=r"size: null .*Dan_0002.jpg with 9x8"):
        LfwPairs(root=root).load()
    assert LfwPairs(root=root, size=8).load().images.shape == (7, 8, 8, 3)


def test_errors_of_the_folder_name_this_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^lfw: root needs .*absent: No such file"):
        LfwFaces(root=tmp_path / "absent").load()
    with pytest.raises(ValidationError, match="max_images"):
        LfwFaces(root=tmp_path, min_images=3, max_images=2)


def test_the_official_view_2_has_ten_folds_without_common_people() -> None:
    lines = read_pairs(real_lfw() / "pairs.txt")
    assert len(lines) == 6000
    same = np.array([line.left[0] == line.right[0] for line in lines])
    folds = np.array([line.fold for line in lines])
    assert np.bincount(folds).tolist() == [600] * 10
    assert np.bincount(folds[same]).tolist() == [300] * 10
    people = [{n.left[0] for n in lines if n.fold == f} for f in range(10)]
    assert sum(map(len, people)) == len(set().union(*people))


def test_real_development_pairs_and_people() -> None:
    root = real_lfw()
    pairs = LfwPairs(root=root, pairs="pairsDevTest.txt").load()
    assert (len(pairs), int(pairs.same.sum()), pairs.images.shape[1:]) == (1000, 500, (112, 112, 3))
    trained = LfwFaces(root=root, min_images=20, max_images=20).load()
    assert (len(trained), trained.n_identities) == (62 * 20, 62)
    remaining = pairs.without(trained.names)
    assert 0 < len(remaining) < len(pairs)
    assert remaining.people is not None
    assert not set(trained.names) & {name for pair in remaining.people for name in pair}


@pytest.mark.slow
def test_real_people_with_five_images() -> None:
    faces = LfwFaces(root=real_lfw(), min_images=5, max_images=30).load()
    counts = np.bincount(faces.identities)
    assert (len(counts), counts.min(), counts.max()) == (423, 5, 30)
    assert [skip.what for skip in faces.skipped] == [
        "5326 identities",
        f"{5985 - len(faces)} images",
    ]
