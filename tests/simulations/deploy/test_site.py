"""A site's folder, the look at its data, the training step for a try, the look at the server."""

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clients.policy import load_policy
from fedface.config import ConfigError
from fedface.data.faces import Faces
from simulations.deploy import authority
from simulations.deploy.settings import SiteFolder
from simulations.deploy.site import check_server, new_site
from simulations.deploy.site_data import check_data, dry_step, faces_of, red_team_of
from tests.simulations.tiny import tiny_config


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three people with two images each, and a file that is none."""
    rng = np.random.default_rng(0)
    for person in ("ada", "bob", "eve"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "people" / person / f"{i}.png")
    (tmp_path / "people" / "bob" / "notes.txt").write_text("x")
    return tmp_path / "people"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """An authority's certificate."""
    (tmp_path / "authority").mkdir()
    authority.found_authority(tmp_path / "authority", "test", 10)
    return tmp_path / "authority" / "ca.crt"


@pytest.fixture
def site(tmp_path: Path, people: Path, ca: Path) -> SiteFolder:
    """A new site."""
    return new_site(tmp_path / "site", "clinic", people, "localhost:8443", ca, None, 9094)


def test_a_new_site_has_keys_settings_and_a_closed_policy(site: SiteFolder, people: Path) -> None:
    settings = site.settings
    authority.require_private(settings.key)
    assert settings.faces_root == people
    assert settings.ca.is_file()
    assert load_policy(settings.policy).weights == {}, "nothing may leave before somebody says so"
    assert red_team_of(settings) is None


def test_a_site_is_never_overwritten(site: SiteFolder, people: Path, ca: Path) -> None:
    key = site.settings.key.read_bytes()
    with pytest.raises(ConfigError, match="needed a free folder, found a site"):
        new_site(site.path, "clinic", people, "localhost:8443", ca, None, 9094)
    assert site.settings.key.read_bytes() == key


@pytest.mark.parametrize(
    ("name", "server", "message"),
    [("Clinic", "localhost:1", "name"), ("clinic", "localhost", "server")],
)
def test_impossible_settings_leave_no_site(
    tmp_path: Path, people: Path, ca: Path, name: str, server: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_site(tmp_path / "other", name, people, server, ca, None, 9094)
    assert not (tmp_path / "other" / "site.toml").exists()


def test_missing_data_or_certificate_is_named(tmp_path: Path, people: Path, ca: Path) -> None:
    with pytest.raises(ConfigError, match="--data: needed a folder of identity folders"):
        new_site(tmp_path / "other", "clinic", tmp_path / "none", "localhost:1", ca, None, 9094)
    with pytest.raises(ConfigError, match="needed a certificate"):
        new_site(tmp_path / "other", "clinic", people, "localhost:1", people, None, 9094)


def test_the_data_are_counted(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", "restored afterwards")
    monkeypatch.delenv("FEDFACE_CACHE")
    site.use_cache()
    check = check_data(faces_of(site.settings).load())
    assert (check.n_people, check.n_images, check.fewest, check.most, check.size) == (
        3,
        6,
        2,
        2,
        16,
    )
    assert check.skipped == ("bob/notes.txt: not an image file by its ending",)
    assert list((site.path / "cache").iterdir()), "decoded faces stay in the site's folder"


def test_one_person_is_too_few() -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ConfigError, match="needed two people at least, found 1"):
        check_data(Faces(images, np.zeros(2, np.int64), ("ada",)))


def test_a_step_for_a_try_trains_the_runs_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    faces = Faces(images, np.arange(12, dtype=np.int64) % 3, ("ada", "bob", "eve"))
    loss, seconds = dry_step(faces, tiny_config(tmp_path))
    assert loss > 0
    assert seconds > 0


def test_settings_of_the_data_are_checked(site: SiteFolder) -> None:
    broken = site.settings.model_copy(update={"faces": {"name": "nothing"}})
    with pytest.raises(ConfigError, match=r"site\.toml: faces"):
        faces_of(broken)
    drill = {"name": "sign_flip", "malicious_share": 0.5}
    attack = red_team_of(site.settings.model_copy(update={"red_team": drill}))
    assert attack is not None
    assert attack.name == "sign_flip"


class Server(BaseHTTPRequestHandler):
    """Answers with a date of its own."""

    skew = 0.0

    def do_GET(self) -> None:
        self.send_response_only(404)
        date = datetime.now(UTC) - timedelta(seconds=self.skew)
        self.send_header("Date", format_datetime(date, usegmt=True))
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def address(tmp_path: Path, ca: Path) -> Iterator[str]:
    """The address of a server of the federation."""
    authority.certify(ca.parent, tmp_path, "server", "server", 5, ("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_the_server_is_looked_at(
    site: SiteFolder, address: str, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "skew", skew)
    settings = site.settings.model_copy(update={"server": address})
    said: list[str] = []
    if skew:
        sign = r"\+" if skew > 0 else "-"
        with pytest.raises(ConfigError, match=rf"clock: .* found {sign}3(59|60)\d s"):
            check_server(settings, said.append)
    else:
        check_server(settings, said.append)
    assert said == []


def test_a_server_of_another_federation_is_refused(
    site: SiteFolder, address: str, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    authority.found_authority(tmp_path / "theirs", "other", 10)
    settings = site.settings.model_copy(
        update={"server": address, "ca": tmp_path / "theirs" / "ca.crt"}
    )
    with pytest.raises(ConfigError, match="needed the certificate of the federation of"):
        check_server(settings, print)


def test_a_server_that_is_away_is_waited_for(site: SiteFolder) -> None:
    said: list[str] = []
    check_server(site.settings.model_copy(update={"server": "localhost:1"}), said.append)
    assert "does not answer yet" in said[0]
