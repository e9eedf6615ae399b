"""Keys and certificates of a federation: its own authority, short-lived certificates, EC keys.

Secret keys are written with mode 0600, once: a file that is there is never overwritten.
"""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedface.config import ConfigError

Role = Literal["server", "operator"]
"""What a certificate is good for: being the server, or giving it orders."""

_PURPOSE = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "operator": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_CLOCKS_DIFFER = timedelta(minutes=10)


def found_authority(folder: Path, name: str, days: int) -> None:
    """Writes the key (``ca.key``) and the certificate (``ca.crt``) of a new authority.

    Raises:
        ConfigError: If there is one already.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} federation authority")
    builder = _builder(subject, subject, key.public_key(), days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(signs=True), critical=True)
    write_secret(folder / "ca.key", _pem(key))
    _write(folder / "ca.crt", builder.sign(key, hashes.SHA256()))


def certify(
    authority: Path, folder: Path, stem: str, role: Role, days: int, hosts: tuple[str, ...] = ()
) -> x509.Certificate:
    """Writes a new key ``<stem>.key`` and its certificate ``<stem>.crt``, and returns the latter.

    Args:
        authority: The folder with ``ca.key`` and ``ca.crt``.
        folder: Where to write.
        stem: The files' names, and the certificate's.
        role: What the certificate is good for.
        days: How long it is valid.
        hosts: Names and addresses under which a server is reached.

    Raises:
        ConfigError: If the authority's files cannot be read or the key is there already.
    """
    try:
        issuer_key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
        issuer = read_certificate(authority / "ca.crt")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{authority}: needed ca.key and ca.crt, found: {error}") from None
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{authority}/ca.key: needed an EC key, found another kind")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(stem), issuer.subject, key.public_key(), days)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_PURPOSE[role]]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    write_secret(folder / f"{stem}.key", _pem(key))
    _write(folder / f"{stem}.crt", certificate)
    return certificate


def new_site_key(folder: Path, name: str) -> Path:
    """Writes a site's P-384 key pair in OpenSSH form, as Flower reads it; returns the public one.

    Raises:
        ConfigError: If the key is there already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_secret(folder / name, secret)
    path = folder / f"{name}.pub"
    path.write_bytes(public + f" {name}\n".encode())
    return path


def read_site_key(path: Path) -> bytes:
    """Returns the public key in the file ``path`` (OpenSSH) as the PEM bytes that Flower takes.

    Raises:
        ConfigError: If it is no public key on a NIST curve.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: needed a readable file, found: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: needed an OpenSSH public key, found: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: needed an EC key (ecdsa-sha2-nistp384), found another kind")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def read_certificate(path: Path) -> x509.Certificate:
    """Returns the certificate in the PEM file ``path``.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: needed a certificate, found: {error}") from None


def require_in_date(path: Path, remedy: str) -> None:
    """Checks that the certificate in ``path`` is valid today; ``remedy`` says what to do else.

    Raises:
        ConfigError: If there is none, or it is not valid yet or any more.
    """
    found = read_certificate(path)
    if not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
        raise ConfigError(
            f"{path}: needed a certificate that is valid now, found one from "
            f"{found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d} "
            f"({remedy})"
        )


def fingerprint(certificate: x509.Certificate) -> str:
    """Returns the SHA-256 of a certificate, to be compared by telephone."""
    digest = certificate.fingerprint(hashes.SHA256()).hex()
    return ":".join(digest[i : i + 4] for i in range(0, len(digest), 4))


def write_secret(path: Path, content: bytes) -> None:
    """Writes a new file that only its owner may read.

    Raises:
        ConfigError: If it is there already or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{path}: needed a place for a new key, found one (never replaced)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: needed a writable folder, found: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def require_private(path: Path) -> None:
    """Checks that ``path`` is a file that only its owner may read.

    Raises:
        ConfigError: If it is missing or open to others.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(f"{path}: needed a secret key, found: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: needed mode 600 (chmod 600), found {mode:o}")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
