"""The chain of receipts: whatever is done to it is found, and the line is named."""

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import files
from clients.receipts import (
    CHAIN,
    HEAD,
    KEY,
    NOTHING,
    PUBLIC,
    BrokenChain,
    ReceiptError,
    Receipts,
    verify,
)


def chain(folder: Path, n: int, key: Path | None = None) -> Receipts:
    receipts = Receipts(folder, key)
    for number in range(n):
        receipts.append(lambda _, number=number: {"event": "released", "bytes": number})
    return receipts


def lines(folder: Path) -> list[bytes]:
    return (folder / CHAIN).read_bytes().splitlines(keepends=True)


def broken_at(folder: Path, changed: list[bytes], why: str) -> int:
    (folder / CHAIN).write_bytes(b"".join(changed))
    with pytest.raises(BrokenChain, match=why) as error:
        verify(folder)
    return error.value.line


def test_a_chain_that_was_left_alone_holds(tmp_path):
    receipts = chain(tmp_path / "site", 5)
    found = verify(tmp_path / "site")
    assert (found.n, found.n_beyond_head) == (5, 0)
    assert [body["bytes"] for body in receipts.bodies()] == list(range(5))
    assert [body["sequence"] for body in receipts.bodies()] == [1, 2, 3, 4, 5]
    assert receipts.bodies()[0]["previous"] == NOTHING
    assert (tmp_path / "site" / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "site" / CHAIN).stat().st_mode & 0o777 == 0o600


def test_another_process_goes_on_where_the_first_stopped(tmp_path):
    first = chain(tmp_path, 2)
    second = chain(tmp_path, 2)
    first.append(lambda earlier: {"event": "released", "bytes": len(earlier)})
    assert [body["bytes"] for body in second.bodies()] == [0, 1, 0, 1, 4]
    assert verify(tmp_path).n == 5


def test_what_decides_sees_everything_before_and_may_refuse(tmp_path):
    receipts = chain(tmp_path, 3)

    def refuse(earlier):
        assert [body["bytes"] for body in earlier] == [0, 1, 2]
        raise KeyError("no")

    with pytest.raises(KeyError):
        receipts.append(refuse)
    assert verify(tmp_path).n == 3


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_changed_line_is_named(tmp_path, at):
    chain(tmp_path, 5)
    changed = lines(tmp_path)
    value = json.loads(changed[at])
    value["content"]["bytes"] = 99
    changed[at] = json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert broken_at(tmp_path, changed, "signature") == at + 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("chain")
    chain(folder, 3)
    content = bytearray((folder / CHAIN).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / CHAIN).write_bytes(content)
    line = bytes(content[:at]).count(b"\n") + 1
    with pytest.raises(BrokenChain) as error:
        verify(folder)
    assert error.value.line in (line, line + 1, 3)
    assert error.value.line >= line


def test_a_missing_line_is_named(tmp_path):
    chain(tmp_path, 5)
    whole = lines(tmp_path)
    assert broken_at(tmp_path, whole[:2] + whole[3:], "needed receipt 3, found 4") == 3
    assert broken_at(tmp_path, whole[1:], "needed receipt 1, found 2") == 1


def test_lines_in_another_order_are_named(tmp_path):
    chain(tmp_path, 4)
    whole = lines(tmp_path)
    assert broken_at(tmp_path, [whole[0], whole[2], whole[1], whole[3]], "needed receipt 2") == 2


@pytest.mark.parametrize("n_left", [0, 1, 3])
def test_a_chain_that_was_cut_is_found(tmp_path, n_left):
    chain(tmp_path, 4)
    whole = lines(tmp_path)
    line = broken_at(tmp_path, whole[:n_left], f"needed 4 receipts .* found {n_left}")
    assert line == n_left + 1


def test_a_line_twice_or_of_another_chain_is_named(tmp_path):
    chain(tmp_path / "a", 3)
    chain(tmp_path / "b", 3)
    a, b = lines(tmp_path / "a"), lines(tmp_path / "b")
    assert broken_at(tmp_path / "a", [*a, a[2]], "needed receipt 4, found 3") == 4
    assert broken_at(tmp_path / "a", [a[0], b[1], a[2]], "does not follow") == 2


def test_without_its_head_or_with_a_forged_one_it_does_not_hold(tmp_path):
    chain(tmp_path, 3)
    head = (tmp_path / HEAD).read_bytes()
    forged = head.replace(b'"sequence":3', b'"sequence":2')
    (tmp_path / HEAD).write_bytes(forged)
    with pytest.raises(BrokenChain, match=r"head.json:1: the signature"):
        verify(tmp_path)
    (tmp_path / HEAD).write_bytes(b"{}\n")
    with pytest.raises(BrokenChain, match="needed the head"):
        verify(tmp_path)
    (tmp_path / HEAD).unlink()
    with pytest.raises(BrokenChain, match="found none"):
        verify(tmp_path)
    with pytest.raises(ReceiptError, match="found none"):
        chain(tmp_path, 1)


def test_an_anchor_finds_a_history_that_was_written_anew(tmp_path):
    chain(tmp_path, 3)
    noted = verify(tmp_path).head
    chain(tmp_path, 2)
    assert verify(tmp_path, anchor=noted).n == 5
    for name in (CHAIN, HEAD):
        (tmp_path / name).unlink()
    chain(tmp_path, 5)
    assert verify(tmp_path).n == 5
    with pytest.raises(BrokenChain, match="noted hash"):
        verify(tmp_path, anchor=noted)


def test_a_crash_between_line_and_head_is_no_fault(tmp_path):
    chain(tmp_path, 3)
    head = (tmp_path / HEAD).read_bytes()
    chain(tmp_path, 1)
    (tmp_path / HEAD).write_bytes(head)
    assert verify(tmp_path).n_beyond_head == 1
    chain(tmp_path, 1)
    assert verify(tmp_path).n == 5


@pytest.mark.parametrize("n_lines", [0, 2])
def test_a_line_that_a_crash_cut_off_is_dropped_and_said(tmp_path, n_lines):
    chain(tmp_path, n_lines or 1)
    if not n_lines:  # the crash came while the very first line was written
        (tmp_path / CHAIN).write_bytes(b"")
        (tmp_path / HEAD).unlink()
    with (tmp_path / CHAIN).open("ab") as stream:
        stream.write(b'{"content":{"bytes"')
    with pytest.raises(BrokenChain, match="cut off") as error:
        verify(tmp_path)
    assert error.value.line == n_lines + 1
    dropped, new = chain(tmp_path, 1).bodies()[-2:]
    assert (dropped["event"], dropped["dropped_bytes"]) == ("recovered", 19)
    assert new["event"] == "released" and verify(tmp_path).n == n_lines + 2


def test_a_full_disk_leaves_the_chain_as_it_was(tmp_path, monkeypatch):
    chain(tmp_path, 2)
    write, written = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(data[:40])
        return write(descriptor, data[:40])

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        with pytest.raises(ReceiptError, match="No space left"):
            chain(tmp_path, 1)
    assert written and verify(tmp_path).n == 2
    chain(tmp_path, 1)
    assert verify(tmp_path).n == 3


def test_a_broken_chain_takes_no_more_receipts(tmp_path):
    chain(tmp_path, 3)
    whole = lines(tmp_path)
    (tmp_path / CHAIN).write_bytes(b"".join(whole[:2]))
    with pytest.raises(BrokenChain, match="needed 3 receipts"):
        chain(tmp_path, 1)


def written(path: Path, key, encoding: str) -> Path:
    form = serialization.PrivateFormat.OpenSSH if encoding == "ssh" else None
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            form or serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("encoding", ["pem", "ssh"])
def test_the_keys_of_supernodes_sign_too(tmp_path, encoding):
    key = ec.generate_private_key(ec.SECP384R1())
    path = written(tmp_path / "node", key, encoding)
    chain(tmp_path / "r", 2, path)
    assert verify(tmp_path / "r").n == 2
    public = tmp_path / "node.pub"
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    assert verify(tmp_path / "r", public).n == 2
    chain(tmp_path / "other", 1)
    with pytest.raises(BrokenChain, match="signature"):
        verify(tmp_path / "r", tmp_path / "other" / PUBLIC)


def test_keys_that_cannot_be_used(tmp_path):
    other = written(tmp_path / "rsa", rsa.generate_private_key(65537, 2048), "pem")
    with pytest.raises(ReceiptError, match="Ed25519 or EC"):
        chain(tmp_path / "r", 1, other)
    open_key = written(tmp_path / "open", ec.generate_private_key(ec.SECP256R1()), "pem")
    open_key.chmod(0o644)
    with pytest.raises(ReceiptError, match="chmod 600"):
        chain(tmp_path / "r", 1, open_key)
    (tmp_path / "none").write_bytes(b"no key")
    (tmp_path / "none").chmod(0o600)
    with pytest.raises(ReceiptError, match="private key"):
        chain(tmp_path / "r", 1, tmp_path / "none")
    chain(tmp_path / "r", 1)
    (tmp_path / "r" / KEY).unlink()
    with pytest.raises(ReceiptError, match="needed the key"):
        chain(tmp_path / "r", 1)
    new = written(tmp_path / "new", ec.generate_private_key(ec.SECP256R1()), "pem")
    with pytest.raises(ReceiptError, match="found another key"):
        chain(tmp_path / "r", 1, new)
