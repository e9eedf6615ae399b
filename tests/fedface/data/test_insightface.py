import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.model_selection import KFold

from fedface.data.faces import Skip
from fedface.data.insightface import (
    InsightFaceBin,
    InsightFaceRecord,
    contiguous_folds,
    keys_by_label,
    read_pack,
)
from fedface.data.recordio import IndexedRecords
from fedface.data.restricted_pickle import UnsafePickle
from tests.fedface.data.test_recordio import packed, write_records
from tests.fedface.data.test_restricted_pickle import python2_pack


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))


def sample(name: str) -> Path:
    path = Path(os.environ.get("FEDFACE_DATA", "../shared/data")) / "insightface" / name
    if not path.exists():
        pytest.skip(f"needs the InsightFace samples: {path} is absent, set FEDFACE_DATA")
    return path


def jpeg(value: int, size: int = 8) -> bytes:
    """A uniform JPEG, which decodes to exactly this grey value."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(out, "JPEG", quality=95)
    return out.getvalue()


def write_pack(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, 4))
    return path


def grey(images: np.ndarray) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_pairs_of_a_pack(tmp_path: Path) -> None:
    images = [jpeg(20 * i) for i in range(8)]
    same = [True, False, True, True]
    (tmp_path / "py2.bin").write_bytes(python2_pack(images, same))
    for path in (write_pack(tmp_path / "a.bin", (images, same)), tmp_path / "py2.bin"):
        pairs = InsightFaceBin(path=path, n_folds=3).load()
        assert grey(pairs.images) == [20 * i for i in range(8)]
        assert pairs.images.shape == (8, 8, 8, 3)
        assert pairs.left.tolist() == [0, 2, 4, 6] and pairs.right.tolist() == [1, 3, 5, 7]
        assert pairs.same.tolist() == same
        assert pairs.fold.tolist() == [0, 0, 1, 2]
        assert pairs.people is None
    assert InsightFaceBin(path=path, n_folds=1, size=4).load().images.shape == (8, 4, 4, 3)


@pytest.mark.parametrize(("n_pairs", "n_folds"), [(6000, 10), (7, 3), (4, 4), (9, 2)])
def test_folds_are_insightface_s(n_pairs: int, n_folds: int) -> None:
    fold = contiguous_folds(n_pairs, n_folds)
    splits = KFold(n_folds, shuffle=False).split(np.arange(n_pairs))
    for number, (_, test) in enumerate(splits):
        assert np.flatnonzero(fold == number).tolist() == test.tolist()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([b"a"], r"a pair \(images, same\), found list of 1"),
        (b"ab", r"a pair \(images, same\), found bytes of 2"),
        (([b"a", b"b"], True), "a list of booleans, found list of 2 and bool"),
        (([b"a", True], [True]), "found 1 other images and 0 other booleans"),
        (([b"a", b"b"], [2]), "found 0 other images and 1 other booleans"),
        (([b"a", b"b"], [b"True"]), "found 0 other images and 1 other booleans"),
        (([b"a", b"b", b"c"], [True]), "two images per pair, found 3 images and 1 pairs"),
        (([b"a", b"b"], [True, False]), "two images per pair, found 2 images and 2 pairs"),
    ],
)
def test_packs_of_another_shape(tmp_path: Path, content: object, found: str) -> None:
    path = write_pack(tmp_path / "a.bin", content)
    with pytest.raises(ValueError, match=found) as caught:
        InsightFaceBin(path=path).load()
    assert str(caught.value).startswith(f"{path}: ")


def test_integers_count_as_booleans(tmp_path: Path) -> None:
    _, same = read_pack(write_pack(tmp_path / "a.bin", [(b"a",) * 4, (1, 0)]))
    assert same.dtype == bool and same.tolist() == [True, False]


def test_a_pack_with_a_broken_image_is_refused_by_name(tmp_path: Path) -> None:
    good = jpeg(9)
    images = [good, good, good[: len(good) // 2], good, b"", good]
    path = write_pack(tmp_path / "a.bin", (images, [True, False, True]))
    with pytest.raises(ValueError, match="6 complete images, found 2 that are not") as caught:
        InsightFaceBin(path=path, n_folds=1).load()
    message = str(caught.value)
    assert "image 2 (pair 1) cannot be decoded" in message
    assert "image 4 (pair 2) cannot be decoded" in message


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "a.bin", ([jpeg(9, 8), jpeg(9, 16)], [True]))
    with pytest.raises(ValueError, match="set size"):
        InsightFaceBin(path=path, n_folds=1).load()
    assert InsightFaceBin(path=path, n_folds=1, size=8).load().images.shape == (2, 8, 8, 3)


def test_more_folds_than_pairs_and_no_file(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "a.bin", ([jpeg(1)] * 4, [True, False]))
    with pytest.raises(ValueError, match="n_pairs >= n_folds, got n_pairs=2, n_folds=3"):
        InsightFaceBin(path=path, n_folds=3).load()
    with pytest.raises(ValueError, match=r"insightface_bin: path needs a readable file"):
        InsightFaceBin(path=tmp_path / "absent.bin").load()


def test_a_pack_that_runs_code_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> object:
            return os.mkdir, (str(canary),)

    path = write_pack(tmp_path / "a.bin", ([b"a", Attack()], [True]))
    with pytest.raises(UnsafePickle, match="mkdir"):
        InsightFaceBin(path=path).load()
    assert not canary.exists()


def test_a_changed_pack_is_read_again(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "a.bin", ([jpeg(10), jpeg(20)], [True]))
    assert grey(InsightFaceBin(path=path, n_folds=1).load().images) == [10, 20]
    write_pack(path, ([jpeg(30), jpeg(40)], [True]))
    os.utime(path, ns=(1, 1))
    assert grey(InsightFaceBin(path=path, n_folds=1).load().images) == [30, 40]


def record_set(folder: Path, people: dict[int, list[bytes]]) -> Path:
    """A training set as InsightFace's face2rec2 writes it: images, range records, record 0 last."""
    records, ranges = {}, []
    for label, images in people.items():
        start = len(records) + 1
        for image in images:
            records[len(records) + 1] = packed(image, float(label))
        ranges.append([float(start), float(len(records) + 1)])
    first = len(records) + 1
    for number, span in enumerate(ranges):
        records[first + number] = packed(b"", span)
    records[0] = packed(b"", [float(first), float(first + len(ranges))])
    folder.mkdir(exist_ok=True)
    write_records(folder, records)
    return folder


def test_faces_of_a_record_set(tmp_path: Path) -> None:
    root = record_set(tmp_path / "a", {7: [jpeg(10), jpeg(20)], 2: [jpeg(30)], 11: [jpeg(40)] * 3})
    faces = InsightFaceRecord(root=root).load()
    assert faces.names == ("2", "7", "11")
    assert faces.identities.tolist() == [0, 1, 1, 2, 2, 2]
    assert grey(faces.images) == [30, 10, 20, 40, 40, 40]
    assert faces.skipped == ()
    again = InsightFaceRecord(root=root).load()
    assert isinstance(again.images, np.memmap) and grey(again.images) == grey(faces.images)


def test_limits_and_what_they_leave_out(tmp_path: Path) -> None:
    root = record_set(
        tmp_path / "a",
        {
            0: [jpeg(10)],
            1: [b"broken", jpeg(20), jpeg(30), jpeg(40)],
            2: [jpeg(50), b"broken"],
            3: [jpeg(60), jpeg(70)],
            4: [jpeg(80), jpeg(90)],
        },
    )
    faces = InsightFaceRecord(
        root=root, min_images=2, max_images=2, max_identities=2, size=4
    ).load()
    assert faces.names == ("1", "3")
    assert grey(faces.images) == [20, 30, 60, 70] and faces.images.shape == (4, 4, 4, 3)
    broken = "cannot be decoded: no image of a known format"
    assert faces.skipped == (
        Skip("record 2", broken),
        Skip("record 7", broken),
        Skip("identity 2", "1 readable images, min_images=2"),
        Skip("1 identities", "fewer than min_images=2 records"),
        Skip("1 images", "beyond max_images=2 per identity"),
    )
    with pytest.raises(ValidationError, match="max_images needs to be at least min_images=3"):
        InsightFaceRecord(root=root, min_images=3, max_images=2)
    with pytest.raises(ValueError, match="min_images=5 readable images, found none"):
        InsightFaceRecord(root=root, min_images=5).load()


def test_without_a_range_header_every_record_is_an_image(tmp_path: Path) -> None:
    images = {key: packed(jpeg(10 * key), float(key // 2)) for key in (3, 1, 0, 2)}
    write_records(tmp_path, images)
    faces = InsightFaceRecord(root=tmp_path).load()
    assert grey(faces.images) == [0, 10, 20, 30] and faces.identities.tolist() == [0, 0, 1, 1]


def test_shuffled_records_follow_their_labels_not_the_ranges(tmp_path: Path) -> None:
    labels = [1.0, 0.0, 1.0, 0.0]
    records = {k + 1: packed(jpeg(10 * k), [label, 5.0]) for k, label in enumerate(labels)}
    records |= {5: packed(b"", [1.0, 3.0]), 6: packed(b"", [3.0, 5.0]), 0: packed(b"", [5.0, 7.0])}
    write_records(tmp_path, records)
    faces = InsightFaceRecord(root=tmp_path).load()
    assert grey(faces.images) == [10, 30, 0, 20] and faces.identities.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("label", [0.5, -1.0, 2.0**24, float("nan"), float("inf")])
def test_labels_that_are_no_exact_integers(tmp_path: Path, label: float) -> None:
    write_records(tmp_path, {0: packed(b"", [2.0, 2.0]), 1: packed(jpeg(1), label)})
    with pytest.raises(ValueError, match=r"train\.rec, record 1: needed a label that is an int"):
        InsightFaceRecord(root=tmp_path).load()


def test_missing_and_damaged_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"insightface_rec: root needs a readable file, found"):
        InsightFaceRecord(root=tmp_path).load()
    write_records(tmp_path, {0: packed(b"", [3.0, 3.0]), 1: packed(jpeg(1), 0.0)})
    with pytest.raises(ValueError, match="needed a record 2, found none in the index"):
        InsightFaceRecord(root=tmp_path).load()
    root = record_set(tmp_path / "a", {0: [jpeg(10), jpeg(20)]})
    content = (root / "train.rec").read_bytes()
    (root / "train.rec").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"train\.rec: needed a record of 32 bytes at byte \d+"):
        InsightFaceRecord(root=root).load()


@pytest.mark.parametrize("name", ["lfw_devtest_400.bin", "lfw_devtest_400_py2.bin"])
def test_sample_packs(name: str) -> None:
    path = sample(name)
    encoded, same = read_pack(path)
    with path.open("rb") as file:  # the samples are our own: the oracle may unpickle them
        images, flags = pickle.load(file, encoding="bytes")
    assert encoded == list(images) and same.tolist() == list(flags)
    pairs = InsightFaceBin(path=path).load()
    assert pairs.images.shape == (800, 112, 112, 3)
    for fold in range(10):  # 20 genuine, then 20 impostor pairs
        assert pairs.same[pairs.fold == fold].tolist() == [True] * 20 + [False] * 20
    with Image.open(io.BytesIO(images[417])) as image:
        assert np.array_equal(pairs.images[417], np.asarray(image.convert("RGB")))


def test_sample_records() -> None:
    root = sample("rec_sample")
    listed = [line.split("\t") for line in (root / "train.lst").read_text().splitlines()]
    faces = InsightFaceRecord(root=root).load()
    assert faces.images.shape == (1067, 112, 112, 3) and faces.n_identities == 40
    assert faces.identities.tolist() == [int(label) for _, label, _ in listed]
    assert faces.skipped == ()
    original = sample(f"../lfw/images112/{listed[700][2].removeprefix('lfw112/')}")
    with Image.open(original) as image:
        assert np.array_equal(faces.images[700], np.asarray(image.convert("RGB")))


def test_sample_range_records_agree_with_the_labels() -> None:
    root = sample("rec_sample")
    with IndexedRecords(root / "train.rec", root / "train.idx") as records:
        first, stop = map(int, records.labels(0))
        spans = [range(*map(int, records.labels(key))) for key in range(first, stop)]
        assert [list(span) for span in spans] == list(keys_by_label(records).values())
        assert all(records[key].content == b"" for key in (0, *range(first, stop)))
