"""Signed lines of JSON, and the keys behind them: Ed25519, or ECDSA with SHA-256."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from clients.files import replace
from clients.policy import canonical

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


class KeyUnusable(ValueError):
    """A key cannot be used; the message names its file."""


def make_private_key(path: Path) -> None:
    """Writes a new Ed25519 key that its owner alone may read.

    Raises:
        OSError: If the folder cannot be written.
    """
    secret = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    replace(path, secret, 0o600)


def write_public_key(path: Path, key: PrivateKey) -> None:
    """Writes the public half of ``key``; errors as :func:`make_private_key`."""
    replace(path, public_bytes(key.public_key()), 0o644)


def public_bytes(key: PublicKey) -> bytes:
    """Returns ``key`` as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_private_key(path: Path) -> PrivateKey:
    """Returns the signing key in ``path``.

    Raises:
        KeyUnusable: If it is no Ed25519 or EC key without passphrase, or others may read it.
    """
    data = _bytes_of(path)
    if path.stat().st_mode & 0o077:
        raise KeyUnusable(f"{path}: needed a key that its owner alone may read (chmod 600)")
    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH PRIVATE KEY" in data
        else serialization.load_pem_private_key
    )
    try:
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{path}: needed a private key without passphrase") from None
    if not isinstance(key, PrivateKey):
        raise KeyUnusable(f"{path}: needed an Ed25519 or EC key, found {type(key).__name__}")
    return key


def load_public_key(path: Path) -> PublicKey:
    """Returns the verification key in ``path``.

    Raises:
        KeyUnusable: If it is no Ed25519 or EC key.
    """
    data = _bytes_of(path)
    load = (
        serialization.load_pem_public_key
        if data.lstrip().startswith(b"-----")
        else serialization.load_ssh_public_key
    )
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{path}: needed a public key") from None
    if not isinstance(key, PublicKey):
        raise KeyUnusable(f"{path}: needed an Ed25519 or EC key, found {type(key).__name__}")
    return key


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"{path}: needed a key, found: {error.strerror}") from None


def signed_line(signer: PrivateKey, content: Mapping[str, Any]) -> bytes:
    """Returns ``content`` (plain JSON values) as one line that ends with its signature."""
    data = canonical(dict(content))
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        signature = signer.sign(data)
    else:
        signature = signer.sign(data, ec.ECDSA(hashes.SHA256()))
    text = base64.b64encode(signature).decode()
    return canonical({"content": dict(content), "signature": text}) + b"\n"


def holds(key: PublicKey, signature: bytes, content: Mapping[str, Any]) -> bool:
    """Returns whether ``signature`` was made of ``content`` with the private half of ``key``."""
    data = canonical(dict(content))
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def opened_line(line: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Returns content and signature of a line, or None where it is not written the one way."""
    try:
        value = json.loads(line)
        if not line.endswith(b"\n") or canonical(value) + b"\n" != line:
            return None
        content, signature = value["content"], base64.b64decode(value["signature"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (content, signature) if isinstance(content, dict) and len(value) == 2 else None
