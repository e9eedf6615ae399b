"""Keys and certificates: what they are good for, who may read them, that none is overwritten."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from flwr.cli.supernode.register import try_load_public_key

from fedface.config import ConfigError
from simulations.deploy import authority


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with a server's and an operator's certificate."""
    path = tmp_path_factory.mktemp("authority")
    authority.found_authority(path, "test", days=10)
    hosts = ("localhost", "127.0.0.1", "server.example")
    authority.certify(path, path, "server", "server", 10, hosts)
    authority.certify(path, path, "admin", "operator", 10)
    return path


def test_certificates_say_what_they_are_good_for(folder: Path) -> None:
    purposes = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "admin": ExtendedKeyUsageOID.CLIENT_AUTH}
    for name, purpose in purposes.items():
        certificate = authority.read_certificate(folder / f"{name}.crt")
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        assert list(usage.value) == [purpose]
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert not basic.value.ca


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "server.example"])
def test_python_takes_the_server_under_its_names(folder: Path, hostname: str) -> None:
    assert handshake(folder, folder / "ca.crt", hostname) is None


def test_python_refuses_another_name_and_another_authority(folder: Path, tmp_path: Path) -> None:
    assert "Hostname mismatch" in str(handshake(folder, folder / "ca.crt", "other.example"))
    authority.found_authority(tmp_path, "other", days=10)
    assert "verify failed" in str(handshake(folder, tmp_path / "ca.crt", "localhost"))


def handshake(folder: Path, ca: Path, hostname: str) -> str | None:
    """The client's complaint about the server, or None."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(ca))
    one, other = socket.socketpair()

    def serve() -> None:
        try:
            inside.wrap_socket(one, server_side=True).close()
        except OSError:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(other, server_hostname=hostname).close()
        return None
    except ssl.SSLError as error:
        other.close()
        return str(error)
    finally:
        thread.join()


def test_secrets_are_readable_by_their_owner_alone(folder: Path) -> None:
    for name in ("ca.key", "server.key", "admin.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        authority.require_private(folder / name)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    authority.write_secret(path, b"x")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"needed mode 600 .*, found 640"):
        authority.require_private(path)
    with pytest.raises(ConfigError, match="needed a secret key, found: No such file"):
        authority.require_private(tmp_path / "none")


def test_no_key_is_ever_replaced(folder: Path) -> None:
    before = (folder / "server.key").read_bytes()
    with pytest.raises(ConfigError, match="needed a place for a new key, found one"):
        authority.certify(folder, folder, "server", "server", 10)
    assert (folder / "server.key").read_bytes() == before


def test_without_the_authoritys_key_nothing_is_certified(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match=r"needed ca\.key and ca\.crt"):
        authority.certify(tmp_path, tmp_path, "server", "server", 10)


def test_flower_reads_a_sites_key_as_we_do(tmp_path: Path) -> None:
    public = authority.new_site_key(tmp_path, "clinic")
    assert (tmp_path / "clinic").stat().st_mode & 0o777 == 0o600
    assert b"OPENSSH PRIVATE KEY" in (tmp_path / "clinic").read_bytes()
    pem = authority.read_site_key(public)
    assert pem == try_load_public_key(public)
    assert load_pem_public_key(pem)


@pytest.mark.parametrize("text", [b"", b"ssh-ed25519 AAAA x", b"\x00\x01", b"ecdsa-sha2-nistp384"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key.pub").write_bytes(text)
    with pytest.raises(ConfigError, match=r"key\.pub: needed an"):
        authority.read_site_key(tmp_path / "key.pub")


def test_a_certificate_has_a_fingerprint_to_be_read_out(folder: Path) -> None:
    said = authority.fingerprint(authority.read_certificate(folder / "ca.crt"))
    assert len(said.replace(":", "")) == 64


def test_a_certificate_out_of_its_time_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    authority.require_in_date(folder / "server.crt", "renew it")
    authority.certify(folder, tmp_path, "old", "server", 0, ("localhost",))
    with pytest.raises(ConfigError, match=r"old\.crt: needed .* valid now, .* \(renew it\)"):
        authority.require_in_date(tmp_path / "old.crt", "renew it")
    with pytest.raises(ConfigError, match="needed a certificate, found"):
        authority.require_in_date(tmp_path / "none.crt", "renew it")
