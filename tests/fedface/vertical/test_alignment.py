import hashlib

import pytest

from fedface.vertical.alignment import hashed, intersection, places

KEY = bytes(range(16))


def hmac_by_definition(key: bytes, text: bytes) -> str:
    """RFC 2104 with SHA-256: H((K ^ opad) || H((K ^ ipad) || text))."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + text).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def test_tokens_are_hmac_sha256() -> None:
    assert hashed(["Ann", "Bö"], KEY) == tuple(
        hmac_by_definition(KEY, name.encode()) for name in ("Ann", "Bö")
    )
    assert hashed(["Ann"], KEY) != hashed(["Ann"], KEY + b"x")


def test_the_records_of_all_parties_are_found_and_addressed() -> None:
    ids = {"a": ["p3", "p1", "p2"], "b": ["p2", "p9", "p3"], "c": ["p3", "p2", "p0"]}
    tokens = {party: hashed(own, KEY) for party, own in ids.items()}
    shared = intersection(tokens)
    assert set(shared) == set(hashed(["p2", "p3"], KEY))
    assert list(shared) == sorted(shared)
    orders = [[ids[p][i] for i in places(p, tokens[p], shared)] for p in ids]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == ["p2", "p3"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hashed(["a"], b"short"), "key needs at least 16 bytes, got 5"),
        (lambda: hashed(["a", ""], KEY), "got '' at place 1"),
        (lambda: hashed(["a", "b", "a"], KEY), "1 that stand twice, the first is 'a'"),
        (lambda: intersection({}), "at least one party"),
        (lambda: intersection({"a": ["p1"]}), "party a needs .* tokens .* the first is 'p1'"),
        (lambda: intersection({"a": ["0" * 64] * 2}), "party a needs to send each token once"),
        (
            lambda: intersection({"a": ["0" * 64], "b": ["1" * 64]}),
            r"share, got none \(a has 1, b has 1\)",
        ),
        (lambda: places("a", ["x"], ["x", "y"]), "party a .* got 1 unknown, the first is 'y'"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
