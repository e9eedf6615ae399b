"""A site's folder, what is checked before it takes part, and Flower's SuperNode."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from fedface.config import ConfigError
from simulations.deploy.authority import new_site_key, read_certificate, require_private
from simulations.deploy.processes import flower_environment, program, run_together
from simulations.deploy.settings import SITE, SiteFolder, SiteSettings, parse_toml

MAX_SKEW = 60.0
"""Seconds that the clocks may differ; Flower refuses signatures older than about 300."""

_SITE = """\
# The site {name}; `fedface site up` reads this file. Paths are relative to this folder.
name = "{name}"
server = "{server}"
ca = "ca.crt"
key = "keys/{name}"
policy = "policy.toml"     # what may leave: owned by the data protection officer
port = {port}                # Flower's own, on loopback; sites on one machine need different ones

[faces]                    # the site's own people: <root>/<person>/<image>, aligned
name = "folder"
root = "{data}"
{size}
"""

_POLICY = """\
# What may leave this site. Nothing that is not named here leaves; see docs/site_policy.md.
# `fedface site policy CONFIG` writes the list of tensors of a run that you have agreed to.
version = 1

[weights]
"""


def new_site(
    folder: Path, name: str, data: Path, server: str, ca: Path, size: int | None, port: int
) -> SiteFolder:
    """Writes a new site's folder: settings, keys, the authority's certificate, a closed policy.

    Raises:
        ConfigError: If there is a site already, the data folder or the certificate is missing, or
            a setting is impossible.
    """
    if (folder / "site.toml").exists():
        raise ConfigError(f"{folder}: needed a free folder, found a site")
    if not data.is_dir():
        raise ConfigError(f"--data: needed a folder of identity folders, found {data}")
    read_certificate(ca)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in ("keys", "state"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    text = _SITE.format(
        name=name,
        server=server,
        port=port,
        data=str(data.absolute()).replace("\\", "\\\\").replace('"', '\\"'),
        size=f"size = {size}" if size else "# size = 112           # resize; else as they are",
    )
    parse_toml(text, SiteSettings, "site.toml")
    (folder / "site.toml").write_text(text)
    (folder / "ca.crt").write_bytes(ca.read_bytes())
    if not (folder / "policy.toml").exists():
        (folder / "policy.toml").write_text(_POLICY)
    new_site_key(folder / "keys", name)
    return SiteFolder(folder)


def take_part(folder: SiteFolder, say: Callable[[str], None]) -> int:
    """Runs the site until it is told to stop; returns the exit code.

    Raises:
        ConfigError: If a file is not as it needs to be, the server shows another federation's
            certificate, or the clocks differ too much.
    """
    settings = folder.settings
    require_private(settings.key)
    if settings.red_team is not None:
        say(f"RED TEAM: this site plays the attack {settings.red_team.get('name')}")
    check_server(settings, say)
    command = [
        *supernode(),
        *("--root-certificates", str(settings.ca), "--superlink", settings.server),
        *("--auth-supernode-private-key", str(settings.key)),
        *("--host", "127.0.0.1", "--port", str(settings.port)),
        *("--node-config", f'site="{settings.name}"'),
    ]
    if settings.max_retries is not None:
        command += ["--max-retries", str(settings.max_retries)]
    folder.use_cache()
    environment = flower_environment(folder.path, SITE, "flwr-clientapp")
    code = run_together({"flower-supernode": command}, environment, say)
    if code:
        say(
            f"the site stopped; if it was refused: has an operator admitted {settings.key}.pub "
            f"as {settings.name} (fedface federation admit), does another machine use this key, or "
            "was this site killed less than a minute ago (then try again)?"
        )
    return code


def supernode() -> list[str]:
    """Returns the program that speaks to the server."""
    return [program("flower-supernode")]


def check_server(settings: SiteSettings, say: Callable[[str], None]) -> None:
    """Looks at the server's certificate and clock; a server that is away is only told of.

    Raises:
        ConfigError: If the certificate is not one of the site's federation, or clocks differ.
    """
    context = ssl.create_default_context(cafile=settings.ca)
    host, _, port = settings.server.rpartition(":")
    line = HTTPSConnection(host.strip("[]"), int(port), timeout=10, context=context)
    try:
        line.request("GET", "/")
        date = line.getresponse().headers["Date"]
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{settings.server}: needed the certificate of the federation of {settings.ca}, "
            f"found: {error.verify_message}"
        ) from None
    except (OSError, HTTPException) as error:
        say(f"{settings.server} does not answer yet ({error}); trying on")
        return
    finally:
        line.close()
    if date is not None:
        skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
        if abs(skew) > MAX_SKEW:
            raise ConfigError(
                f"clock: needed to differ from the server's by less than {MAX_SKEW:g} s, found "
                f"{skew:+.0f} s (start a time service)"
            )
