"""The TOML files of servers, operators and sites."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedface.config import ConfigError
from simulations.deploy.settings import (
    ServerSettings,
    SiteFolder,
    SiteSettings,
    from_environment,
    parse_toml,
)

SITE = """
name = "clinic-a"
server = "fed.example:8443"
key = "keys/clinic-a"
[faces]
name = "folder"
root = "faces"
"""


def test_paths_of_a_site_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    settings = SiteFolder(tmp_path).settings
    assert settings.key == tmp_path / "keys" / "clinic-a"
    assert settings.ca == tmp_path / "ca.crt"
    assert settings.policy == tmp_path / "policy.toml"
    assert settings.faces_root == tmp_path / "faces"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE.replace('"faces"', '"/data/faces"'))
    assert SiteFolder(tmp_path).settings.faces_root == Path("/data/faces")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SITE.replace("clinic-a", "../x"), "name"),
        (SITE.replace("8443", "port"), "server"),
        ("surprise = 1\n" + SITE, "surprise"),
        ("port = 99999\n" + SITE, "port"),
        ("name = [", "needed TOML"),
        ("", "name"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        _ = SiteFolder(tmp_path).settings


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: needed a readable file"):
        _ = SiteFolder(tmp_path).settings
    (tmp_path / "site.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="needed UTF-8"):
        _ = SiteFolder(tmp_path).settings


@given(st.text(max_size=300))
def test_no_text_crashes_the_reader(text: str) -> None:
    for schema in (SiteSettings, ServerSettings):
        with pytest.raises(ConfigError):
            parse_toml(text, schema, "any")


def test_the_environment_has_to_name_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDFACE_SITE", raising=False)
    with pytest.raises(ConfigError, match="FEDFACE_SITE: needed the environment variable"):
        from_environment("FEDFACE_SITE")
    monkeypatch.setenv("FEDFACE_SITE", "/x")
    assert from_environment("FEDFACE_SITE") == Path("/x")
