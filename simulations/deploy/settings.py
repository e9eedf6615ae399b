"""The folders of a server, an operator and a site, each with one small TOML file.

Paths in a TOML file are relative to the folder that it lies in. Nothing here imports torch: these
files are read by processes that run for months.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, PositiveInt, field_validator, model_validator

from fedface.config import Config, ConfigError, parse_config
from simulations.deploy.plan import SiteName

SERVER, SITE, OPERATOR = "FEDFACE_SERVER", "FEDFACE_SITE", "FEDFACE_OPERATOR"
"""Environment variables that name the folder, for Flower's processes and for the shell."""

ConfigT = TypeVar("ConfigT", bound=Config)

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerSettings(Config):
    """``server.toml``.

    Attributes:
        name: The federation's name.
        hosts: Names and addresses under which sites and operators reach the server.
        listen: The address that the proxy listens on.
        port: The one port that has to be open to the world.
        superlink_port: Flower's port, on this machine's loopback only.
        max_body_mib: Largest request that the proxy lets through.
        max_connections: Open connections from one address, in all.
    """

    name: SiteName
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    listen: str = "0.0.0.0"
    port: Port = 8443
    superlink_port: Port = 9443
    max_body_mib: PositiveInt = 1024
    max_connections: PositiveInt = 256

    @field_validator("hosts", "listen")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        for host in (value,) if isinstance(value, str) else value:
            if not host or not all(c.isalnum() or c in ".:-" for c in host):
                raise ValueError(f"needs names or addresses, got {host!r}")
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port == self.superlink_port:
            raise ValueError(f"superlink_port needs another port than port={self.port}")
        return self


class OperatorSettings(Config):
    """``operator.toml``: where the server is and how an operator proves who he is."""

    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]
    ca: Path = Path("ca.crt")
    certificate: Path
    key: Path


class SiteSettings(Config):
    """``site.toml``.

    Attributes:
        name: The name that the site is admitted under.
        server: ``host:port`` of the federation's server.
        ca: The certificate of the federation's authority.
        key: The site's secret key.
        faces: The site's own people: any loader that a run's configuration may name
            (:func:`simulations.deploy.site_data.faces_of` checks it).
        policy: What may leave the site.
        port: Flower's port, on this machine's loopback only; sites of one machine need others.
        max_retries: Attempts to reach the server again before giving up; null never gives up.
        red_team: An attack that this site plays on purpose, for a drill that was agreed on.
    """

    name: SiteName
    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]
    ca: Path = Path("ca.crt")
    key: Path
    faces: dict[str, Any]
    policy: Path = Path("policy.toml")
    port: Port = 9094
    max_retries: PositiveInt | None = None
    red_team: dict[str, Any] | None = None

    @property
    def faces_root(self) -> Path | None:
        """The folder of the site's people, where their loader reads one."""
        root = self.faces.get("root")
        return Path(root) if isinstance(root, str) else None


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder."""

    path: Path

    @property
    def settings(self) -> ServerSettings:
        """What ``server.toml`` says; ConfigError if it cannot be read."""
        return read_toml(self.path / "server.toml", ServerSettings)

    @property
    def tls(self) -> Path:
        """The folder with ``server.crt``, ``server.key`` and ``ca.crt``."""
        return self.path / "tls"

    @property
    def operators(self) -> Path:
        """The folder with the certificates of those who may give orders."""
        return self.path / "operators"

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.path / "runs"


@dataclass(frozen=True)
class OperatorFolder:
    """An operator's folder."""

    path: Path

    @property
    def settings(self) -> OperatorSettings:
        """What ``operator.toml`` says, paths made absolute; ConfigError if it cannot be read."""
        found = read_toml(self.path / "operator.toml", OperatorSettings)
        return found.model_copy(update=_below(self.path, found, ("ca", "certificate", "key")))


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder."""

    path: Path

    @property
    def settings(self) -> SiteSettings:
        """What ``site.toml`` says, paths made absolute; ConfigError if it cannot be read."""
        found = read_toml(self.path / "site.toml", SiteSettings)
        update = _below(self.path, found, ("ca", "key", "policy"))
        if (root := found.faces_root) is not None:
            update["faces"] = {**found.faces, "root": str(self.path.absolute() / root)}
        return found.model_copy(update=update)

    def use_cache(self) -> None:
        """Makes this process and its children keep decoded faces in the site's own folder.

        A person who withdraws is deleted there; ``FEDFACE_CACHE``, where it is set, wins.
        """
        os.environ.setdefault("FEDFACE_CACHE", str(self.path.absolute() / "cache"))

    def state(self, run: str) -> Path:
        """The folder with the private head of the run with this name."""
        return self.path / "state" / run


def from_environment(variable: str) -> Path:
    """Returns the folder that an environment variable names.

    Raises:
        ConfigError: If it is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"{variable}: needed the environment variable, found none")
    return Path(value)


def read_toml(path: Path, schema: type[ConfigT]) -> ConfigT:
    """Returns the TOML file ``path`` as a validated ``schema``.

    Raises:
        ConfigError: One line per problem, each naming the file, the field and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: needed a readable file, found: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: needed UTF-8 text, found other bytes") from None
    return parse_toml(text, schema, str(path))


def parse_toml(text: str, schema: type[ConfigT], source: str) -> ConfigT:
    """Returns TOML ``text`` as a validated ``schema``; errors as in :func:`read_toml`."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: needed TOML, found: {' '.join(str(error).split())}") from None
    return parse_config(content, schema, source)


def _below(folder: Path, settings: Config, fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: folder.absolute() / getattr(settings, field) for field in fields}
