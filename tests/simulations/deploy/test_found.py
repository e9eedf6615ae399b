"""Founding a federation: three folders, one authority, settings that load."""

from pathlib import Path

import pytest

from fedface.config import ConfigError
from simulations.deploy import found
from simulations.deploy.authority import read_certificate, require_private
from simulations.deploy.order import deployment_of
from simulations.deploy.settings import OperatorFolder, ServerFolder
from simulations.schema import load_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new federation."""
    path = tmp_path / "fed"
    found.found(path, "demo", ("fed.example", "10.0.0.1"), "0.0.0.0", 8443, 9443)
    return path


def test_a_new_federation_has_all_it_needs(folder: Path) -> None:
    server = ServerFolder(folder / "server").settings
    assert server.name == "demo"
    assert server.hosts == ("fed.example", "10.0.0.1")
    operator = OperatorFolder(folder / "operator").settings
    assert operator.server == "fed.example:8443"
    for secret in (folder / "server/tls/server.key", folder / "authority/ca.key", operator.key):
        require_private(secret)
    known = read_certificate(folder / "server/operators/admin.crt")
    assert known == read_certificate(operator.certificate)
    assert deployment_of(load_run(folder / "run.yaml")).sites == (
        "clinic-a",
        "clinic-b",
        "clinic-c",
    )


def test_the_authoritys_key_is_in_no_other_folder(folder: Path) -> None:
    key = (folder / "authority" / "ca.key").read_bytes()
    holders = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == key]
    assert holders == [folder / "authority" / "ca.key"]


def test_a_federation_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(ConfigError, match="needed a free folder, found a federation"):
        found.found(folder, "demo", ("fed.example",), "0.0.0.0", 8443, 9443)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Demo; rm"}, "name"),
        ({"hosts": ("a b",)}, "hosts"),
        ({"hosts": ('x"; deny',)}, "hosts"),
        ({"hosts": ()}, "hosts"),
        ({"listen": "any;"}, "listen"),
        ({"port": 0}, "port"),
        ({"superlink_port": 8443}, "superlink_port"),
    ],
)
def test_impossible_settings_leave_nothing_behind(
    tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    settings = {
        "name": "demo",
        "hosts": ("fed.example",),
        "listen": "0.0.0.0",
        "port": 8443,
        "superlink_port": 9443,
    } | changes
    with pytest.raises(ConfigError, match=field):
        found.found(tmp_path / "fed", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "fed").exists()


def test_a_renewed_certificate_has_a_new_key_and_the_new_names(folder: Path) -> None:
    tls = folder / "server" / "tls"
    before = (tls / "server.key").read_bytes()
    found.certify_server(folder, ("new.example",), days=5)
    assert (tls / "server.key").read_bytes() != before
    names = str(read_certificate(tls / "server.crt").extensions)
    assert "new.example" in names
    assert "127.0.0.1" in names, "the proxy speaks to Flower on loopback"
    assert not list(tls.glob("renewed.*"))


def test_another_operator_is_known_to_the_server(folder: Path) -> None:
    path = found.add_operator(folder, "second", days=5)
    assert OperatorFolder(path).settings.server == "fed.example:8443"
    assert {p.stem for p in (folder / "server" / "operators").iterdir()} == {"admin", "second"}
    with pytest.raises(ConfigError, match="needed a new operator"):
        found.add_operator(folder, "second", days=5)
