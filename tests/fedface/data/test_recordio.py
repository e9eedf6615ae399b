import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.data.recordio import MAGIC, IndexedRecords, read_index, unpack

MAGIC_BYTES = struct.pack("<I", MAGIC)


def framed(data: bytes) -> bytes:
    """One record as dmlc-core's RecordIOWriter::WriteRecord lays it out."""
    out, done = b"", 0
    for i in range(0, len(data) // 4 * 4, 4):
        if data[i : i + 4] == MAGIC_BYTES:
            part = 1 if done == 0 else 2
            out += MAGIC_BYTES + struct.pack("<I", part << 29 | i - done) + data[done:i]
            done = i + 4
    part = 3 if done else 0
    out += MAGIC_BYTES + struct.pack("<I", part << 29 | len(data) - done) + data[done:]
    return out + b"\0" * (-len(data) % 4)


def packed(content: bytes, labels: list[float] | float, number: int = 0) -> bytes:
    """One record's data as mxnet.recordio.pack lays it out."""
    if isinstance(labels, list):
        extra = np.array(labels, "<f4").tobytes()
        return struct.pack("<IfQQ", len(labels), 0, number, 0) + extra + content
    return struct.pack("<IfQQ", 0, labels, number, 0) + content


def write_records(folder: Path, records: dict[int, bytes]) -> tuple[Path, Path]:
    """Writes train.rec and train.idx, in this order, and returns their paths."""
    content, lines = b"", ""
    for key, data in records.items():
        lines += f"{key}\t{len(content)}\n"
        content += framed(data)
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text(lines)
    return folder / "train.rec", folder / "train.idx"


contents = st.lists(st.sampled_from([b"a", b"bcd", MAGIC_BYTES, b"\0" * 5]), max_size=12).map(
    b"".join
) | st.binary(max_size=200)


@settings(deadline=None)
@given(st.lists(contents, min_size=1, max_size=6), st.randoms())
def test_records_round_trip(tmp_path_factory: pytest.TempPathFactory, data, random) -> None:
    folder = tmp_path_factory.mktemp("rec")
    keys = random.sample(range(100), len(data))
    with IndexedRecords(*write_records(folder, dict(zip(keys, data, strict=True)))) as records:
        for key, content in random.sample(list(zip(keys, data, strict=True)), len(data)):
            assert records.read(records.offsets[key]) == content


def test_parts_are_joined_by_the_magic(tmp_path: Path) -> None:
    data = MAGIC_BYTES * 2 + b"abcd" + MAGIC_BYTES + b"xy"
    raw = framed(data)
    assert raw.count(MAGIC_BYTES) == 4  # first, middle, middle, last: the data's own are gone
    (tmp_path / "train.rec").write_bytes(raw)
    (tmp_path / "train.idx").write_text("0\t0\n")
    with IndexedRecords(tmp_path / "train.rec", tmp_path / "train.idx") as records:
        assert records.read(0) == data


@settings(deadline=None)
@given(
    st.floats(width=32, allow_nan=False) | st.lists(st.floats(width=32, allow_nan=False)),
    contents,
)
def test_headers_round_trip(labels, content: bytes) -> None:
    record = unpack(packed(content, labels, 7), "x")
    if labels == []:  # flag 0: the label field counts, which pack leaves 0
        labels = 0.0
    assert record.labels.dtype == np.float32
    assert record.labels.tolist() == np.atleast_1d(np.array(labels, np.float32)).tolist()
    assert record.content == content


@pytest.mark.parametrize("labels", [3.0, [3.0], [3.0, 4.0, 5.0]])
@pytest.mark.parametrize("content", [b"", b"jpeg", b"jpeg" + MAGIC_BYTES + b"rest"])
def test_labels_alone_equal_the_record_s(tmp_path: Path, labels, content: bytes) -> None:
    with IndexedRecords(*write_records(tmp_path, {5: packed(content, labels)})) as records:
        assert records.labels(5).tolist() == records[5].labels.tolist()
        assert records[5].content == content


def test_labels_cut_by_a_magic_are_still_read(tmp_path: Path) -> None:
    magic_label = np.frombuffer(MAGIC_BYTES, "<f4")[0]
    data = packed(b"jpeg", [1.0, float(magic_label), 2.0])
    with IndexedRecords(*write_records(tmp_path, {0: data})) as records:
        assert records.labels(0).tolist() == [1.0, float(magic_label), 2.0]


def test_damage_is_named_with_file_and_position(tmp_path: Path) -> None:
    rec, idx = write_records(tmp_path, {0: packed(b"abcd", 0.0), 1: packed(b"efghij", 1.0)})
    whole = rec.read_bytes()
    second = read_index(idx)[1]
    assert second == 36

    def error_of(content: bytes) -> str:
        rec.write_bytes(content)
        with IndexedRecords(rec, idx) as records:
            assert records[0].content == b"abcd"
            with pytest.raises(ValueError, match="at byte 36") as caught:
                records[1]
            with pytest.raises(ValueError, match="at byte 36") as of_labels:
                records.labels(1)
        assert str(of_labels.value) == str(caught.value)
        return str(caught.value)

    where = f"at byte {second}"
    assert error_of(whole[:second]) == f"{rec}: needed 8 bytes of a record's head {where}, found 0"
    assert "found 5" in error_of(whole[: second + 5])
    assert f"needed a record of 30 bytes {where}, found 29" in error_of(whole[: second + 8 + 29])
    assert f"needed the magic 0xced7230a {where}, found 0x58585858" in error_of(
        whole[:second] + b"XXXX" + whole[second + 4 :]
    )
    short = framed(b"123456789")
    assert error_of(whole[:second] + short) == (
        f"{rec}, record 1 {where}: needed a header of 24 bytes, found 9"
    )
    lying = framed(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0))
    assert "needed 4294967295 labels" in error_of(whole[:second] + lying)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([3], "needed the start of a record at byte 0, found part 3"),
        ([2], "needed the start of a record at byte 0, found part 2"),
        ([5], "needed the start of a record at byte 0, found part 5"),
        ([1, 0], "needed the next part of a record at byte 32, found part 0"),
        ([1, 2, 1], "needed the next part of a record at byte 64, found part 1"),
        ([1, 2], "needed 8 bytes of a record's head at byte 64, found 0"),
    ],
)
def test_parts_out_of_order(tmp_path: Path, parts: list[int], found: str) -> None:
    raw = b"".join(MAGIC_BYTES + struct.pack("<I", part << 29 | 24) + bytes(24) for part in parts)
    (tmp_path / "train.rec").write_bytes(raw)
    (tmp_path / "train.idx").write_text("0\t0\n")
    with IndexedRecords(tmp_path / "train.rec", tmp_path / "train.idx") as records:
        with pytest.raises(ValueError, match=found):
            records[0]
        if parts[0] != 1:  # where the start is in order, the labels are read from it alone
            with pytest.raises(ValueError, match=found):
                records.labels(0)


def test_every_part_is_padded(tmp_path: Path) -> None:
    parts = [(1, b"abcde"), (2, b"f"), (3, b"ghi")]
    raw = b"".join(
        MAGIC_BYTES + struct.pack("<I", part << 29 | len(data)) + data + b"\0" * (-len(data) % 4)
        for part, data in parts
    )
    (tmp_path / "train.rec").write_bytes(raw)
    (tmp_path / "train.idx").write_text("0\t0\n")
    with IndexedRecords(tmp_path / "train.rec", tmp_path / "train.idx") as records:
        assert records.read(0) == MAGIC_BYTES.join([b"abcde", b"f", b"ghi"])


def test_positions_and_keys_that_do_not_exist(tmp_path: Path) -> None:
    rec, idx = write_records(tmp_path, {0: packed(b"", 0.0)})
    with IndexedRecords(rec, idx) as records:
        with pytest.raises(ValueError, match=r"train\.rec: needed a record 3, found none"):
            records[3]
        with pytest.raises(ValueError, match="at byte 1000000, found 0"):
            records.read(10**6)
    rec.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.rec: needed records, found an empty file"):
        IndexedRecords(rec, idx)
    with pytest.raises(FileNotFoundError):
        IndexedRecords(tmp_path / "absent.rec", idx)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0\t0\n1 36 9\n", "line 2: needed a key and a position, found '1 36 9'"),
        ("0\t-4\n", "line 1"),
        ("a\t0\n", "line 1"),
        ("0\t0\n\n1\t36\n", "line 2"),
        ("0\t" + "9" * 5000, "line 1"),
        ("²\t0\n", "line 1"),
        ("4\t0\n4\t36\n", "line 2: needed each key once, found 4 again"),
    ],
)
def test_broken_indices(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "train.idx").write_text(text)
    with pytest.raises(ValueError, match=found) as caught:
        read_index(tmp_path / "train.idx")
    assert str(tmp_path / "train.idx") in str(caught.value)
