import builtins
import os
import pickle
import pickletools
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedface.data.restricted_pickle import UnsafePickle, load_plain, parse_plain

plain = st.recursive(
    st.binary(max_size=300) | st.booleans() | st.integers(-(2**31), 2**31 - 1),
    lambda inner: st.lists(inner, max_size=6) | st.lists(inner, max_size=6).map(tuple),
    max_leaves=30,
)


def python2_pack(images: list[bytes], same: list[bool]) -> bytes:
    """What Python 2 writes with protocol 2: str as (SHORT_)BINSTRING, every value memoised."""
    out = [b"\x80\x02]q\x00("]
    for number, image in enumerate(images):
        short = len(image) < 256
        out.append(b"U" + bytes([len(image)]) if short else b"T" + struct.pack("<i", len(image)))
        out.append(image + b"r" + struct.pack("<I", number + 10))
    out.append(b"e]q\x01(" + b"".join(b"\x88" if s else b"\x89" for s in same) + b"e\x86q\x02.")
    return b"".join(out)


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> object:
        return self.reduced


@settings(deadline=None)
@given(plain, st.sampled_from([3, 4, 5]))
def test_plain_data_round_trips(value: object, protocol: int) -> None:
    found = parse_plain(pickle.dumps(value, protocol), "x")
    assert found == value and repr(found) == repr(value)  # True is not 1, (1,) is not [1]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=8), st.lists(st.booleans(), max_size=8))
def test_python2_strings_are_bytes(images: list[bytes], same: list[bool]) -> None:
    content = python2_pack(images, same)
    assert parse_plain(content, "x") == (images, same)
    assert pickle.loads(content, encoding="bytes") == (images, same)  # the oracle reads it alike


def test_one_image_used_twice_is_read_twice() -> None:
    image = b"jpeg" * 100
    content = pickle.dumps(([image, image], [True]), 4)
    assert any(op.name == "BINGET" for op, _, _ in pickletools.genops(content))
    assert parse_plain(content, "x") == ([image, image], [True])


def test_old_style_opcodes() -> None:
    # MARK I01 I00 TUPLE, MARK ... LIST, APPEND, PUT/GET: protocol 0 as Python 2 wrote it
    content = b"((I01\nI00\nI7\ntp0\n(lp1\nI5\nap2\n(tt."
    assert parse_plain(content, "x") == pickle.loads(content) == ((True, False, 7), [5], ())
    assert parse_plain(b"\x80\x02K\x05q\x00h\x00\x86.", "x") == (5, 5)


MALICIOUS = {
    "reduce, protocol 2": (lambda c: pickle.dumps(Calls(os.system, c), 2), "system"),
    "reduce, protocol 4": (lambda c: pickle.dumps(Calls(os.system, c), 4), "system"),
    "reduce, protocol 0": (lambda c: pickle.dumps(Calls(os.system, c), 0), "system"),
    "eval": (
        lambda c: pickle.dumps(Calls(builtins.eval, f"__import__('os').system({c!r})"), 4),
        "builtins.eval",
    ),
    "nested deep": (
        lambda c: pickle.dumps(([b"a", [[(b"b", [Calls(os.system, c)])]]], [True]), 4),
        "system",
    ),
    "inst": (lambda c: b"(S" + repr(c).encode() + b"\nios\nsystem\n.", "os.system"),
    "obj": (lambda c: b"(cos\nsystem\nS" + repr(c).encode() + b"\no.", "os.system"),
    "memoised names": (
        lambda c: (
            b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93"
            + b"\x8c"
            + bytes([len(c)])
            + c.encode()
            + b"\x85R."
        ),
        "os.system",
    ),
    "first half is a good pack": (
        lambda c: python2_pack([b"a", b"b"], [True])[:-1] + pickle.dumps(Calls(os.system, c), 2),
        "system",
    ),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_code_is_refused_by_name_and_not_run(name: str, tmp_path: Path) -> None:
    build, named = MALICIOUS[name]
    canary = tmp_path / "canary"
    content = build(f"touch {canary}")
    (tmp_path / "pack.bin").write_bytes(content)
    with pytest.raises(UnsafePickle, match=named) as caught:
        load_plain(tmp_path / "pack.bin")
    assert str(caught.value).startswith(f"{tmp_path}/pack.bin: ")
    assert not canary.exists()
    pickle.loads(content)  # the attack is real: Python's own unpickler runs it
    assert canary.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pname\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"}.", "EMPTY_DICT"),
        (b"\x8f.", "EMPTY_SET"),
        (b"K\x01K\x01b.", "BUILD"),
        (b"K\x01)R.", "REDUCE"),
        (b"K\x01)\x81.", "NEWOBJ"),
        (b"\x8c\x01a.", "SHORT_BINUNICODE"),
        (b"G" + b"\0" * 8 + b".", "BINFLOAT"),
        (b"N.", "NONE"),
        (b"]2.", "DUP"),
        (b"\x8b" + struct.pack("<i", 10**6) + b"\xff" * 10**6 + b".", "LONG4"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff.", "complete pickle"),
        (pickle.dumps([b"a"], 2), "_codecs.encode"),
        (pickle.dumps(bytearray(b"a"), 5), "BYTEARRAY8"),
    ],
)
def test_other_opcodes_are_refused_by_name(content: bytes, named: str) -> None:
    with pytest.raises(UnsafePickle, match=named):
        parse_plain(content, "x")


PLAIN_OPCODES = {
    *("PROTO", "FRAME", "MARK", "STOP", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "LIST", "APPEND"),
    *("APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "INT", "BININT"),
    *("BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING"),
    *("SHORT_BINSTRING", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET"),
    "LONG_BINGET",
}
ARGUMENTS = (b"", b"\0", b"\0" * 2, b"\0" * 4, b"\0" * 8, b"1\n", b"a\n", b"a\nb\n", b"'a'\n")


def alone(opcode: pickletools.OpcodeInfo) -> bytes:
    """A pickle of this opcode, with an argument that fits, and STOP."""
    for argument in ARGUMENTS:
        content = opcode.code.encode("latin-1") + argument + b"." * (opcode.name != "STOP")
        try:
            names = [found.name for found, _, _ in pickletools.genops(content)]
        except ValueError:
            continue
        if names in ([opcode.name, "STOP"], ["STOP"]):
            return content
    raise LookupError(opcode.name)


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda o: o.name)
def test_every_opcode_is_plain_or_refused(opcode: pickletools.OpcodeInfo) -> None:
    found = ""
    try:
        parse_plain(alone(opcode), "x")
    except UnsafePickle as error:  # plain opcodes alone are mostly broken pickles
        found = str(error)
    refused = re.search(rf"only, found (opcode )?{opcode.name} ", found) is not None
    assert refused == (opcode.name not in PLAIN_OPCODES)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "exhausted"),
        (b"\x80\x04]", "exhausted"),
        (b"B\xff\xff\xff\x7fabc.", "only 3|only 4|remain"),
        (b"].x", "behind"),
        (b".", "0 values"),
        (b"]].", "2 values"),
        (b"](].", "open mark"),
        (b"e.", "without one"),
        (b"]e.", "mark without"),
        (b"](\x85.", "more values"),
        (b"a.", "more values"),
        (b"K\x01K\x02a.", "APPEND to int"),
        (b"q\x00.", "value without"),
        (b"](q\x00.", "value without"),
        (b"h\x05.", "memo 5"),
        (b"]q\x00h\x00a.", "second reference to one list"),
        (b"]q\x00\x85q\x01h\x01\x86.", "second reference to one tuple"),
        (b"\xff.", "unknown"),
        (b"I12x\n.", "complete pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "complete pickle"),
    ],
)
def test_broken_pickles(content: bytes, found: str) -> None:
    with pytest.raises(UnsafePickle, match=found):
        parse_plain(content, "x")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_plain_data_or_unsafe_pickle(content: bytes) -> None:
    try:
        value = parse_plain(content, "x")
    except UnsafePickle:
        return
    assert isinstance(value, bytes | bool | int | list | tuple)


@settings(deadline=None)
@given(st.data())
def test_damaged_packs_never_do_anything_else(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(([b"a" * 9, b"b" * 300], [True]), 4))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_plain(bytes(content), "x")
    except UnsafePickle:
        return


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "pack.bin"
    path.write_bytes(pickle.dumps([b"x" * 100], 4))
    n_bytes = path.stat().st_size
    n_opcodes = len(list(pickletools.genops(path.read_bytes())))
    assert load_plain(path, n_bytes, n_opcodes) == [b"x" * 100]
    with pytest.raises(UnsafePickle, match=f"at most {n_bytes - 1} bytes"):
        load_plain(path, max_bytes=n_bytes - 1)
    with pytest.raises(UnsafePickle, match=f"more than {n_opcodes - 1} opcodes"):
        load_plain(path, max_opcodes=n_opcodes - 1)
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "absent.bin")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(UnsafePickle, match="at most 1000 bytes"):
        load_plain(Path("/dev/zero"), max_bytes=1000)


def test_memo_bombs_stay_small() -> None:
    lists = b"]" + b"q\x00h\x00a" * 30  # a list that holds itself, again and again
    with pytest.raises(UnsafePickle, match="second reference"):
        parse_plain(lists + b".", "x")
    bomb = b"]q\x00" + b"".join(  # doubles at each level: 2^40 elements if references were shared
        b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(40)
    )
    with pytest.raises(UnsafePickle, match="second reference"):
        parse_plain(bomb + b".", "x")
    assert parse_plain(b"]r\xff\xff\xff\xff.", "x") == []  # a high memo number costs nothing
    with pytest.raises(UnsafePickle, match="more than 1000000 opcodes"):
        parse_plain(b"]\x94" * 600_000 + b".", "x")


def test_deep_nesting_does_not_recurse() -> None:
    value = parse_plain(b"]" + b"\x85" * 50_000 + b".", "x")
    for _ in range(50_000):
        assert isinstance(value, tuple)
        (value,) = value
    assert value == []
