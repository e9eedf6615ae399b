"""Founding a federation: its authority, the server's folder and the first operator's."""

from pathlib import Path

from fedface.config import ConfigError, parse_config
from simulations.deploy import authority
from simulations.deploy.settings import ServerFolder, ServerSettings

AUTHORITY, SERVER, OPERATOR = "authority", "server", "operator"
"""Three folders for three machines; only their owners need them."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_SERVER = """\
# The server of the federation {name}; `fedface server up` reads this file.
name = "{name}"
hosts = [{hosts}]      # under which sites and operators reach the server
listen = "{listen}"
port = {port}                # the one port to open to the world
superlink_port = {superlink_port}      # Flower's own, on loopback
max_body_mib = 1024        # largest request: above the size of one model
max_connections = 256      # from one address
"""

_OPERATOR = """\
# How the operator {operator} reaches the federation {name}.
server = "{host}:{port}"
ca = "ca.crt"
certificate = "{operator}.crt"
key = "{operator}.key"
"""

_RUN = """\
# A run at real sites: fedface submit run.yaml (fedface run run.yaml simulates it).
name: first-run
data:
  # The server's own faces: every round is measured on them, nobody trains on them at real sites.
  faces: {{name: renderer, n_identities: 60, images_per_identity: 8, size: 32}}
  split: {{test: 30, calibration: 20}}
model:
  backbone: {{name: small_conv}}
  head: {{name: cosface, scale: 16, margin: 0.2}}
training: {{epochs: 1, batch_size: 32, optimizer: {{learning_rate: 0.05}}}}
federation: {{n_clients: 3, n_rounds: 5, min_valid_replies: 2, timeout: 600}}
aggregator: {{name: ariba}}
deployment:
  sites: [clinic-a, clinic-b, clinic-c]   # names as admitted
"""


def found(
    folder: Path, name: str, hosts: tuple[str, ...], listen: str, port: int, superlink_port: int
) -> None:
    """Writes a new federation below ``folder``.

    Args:
        folder: Must hold no federation.
        name: The federation's name.
        hosts: Under which the server is reached; the first one is what operators use.
        listen: The server's address, or ``0.0.0.0`` for all.
        port: The proxy's port.
        superlink_port: Flower's, on loopback.

    Raises:
        ConfigError: If there is one already, or a setting is impossible.
    """
    if (folder / AUTHORITY).exists() or (folder / SERVER).exists():
        raise ConfigError(f"{folder}: needed a free folder, found a federation")
    settings = parse_config(
        {
            "name": name,
            "hosts": list(hosts),
            "listen": listen,
            "port": port,
            "superlink_port": superlink_port,
        },
        ServerSettings,
        "federation",
    )
    for part in (folder / AUTHORITY, folder / SERVER / "tls", folder / SERVER / "operators"):
        part.mkdir(mode=0o700, parents=True)
    (folder / SERVER).chmod(0o700)
    authority.found_authority(folder / AUTHORITY, name, days=3650)
    certify_server(folder, settings.hosts, days=365)
    text = _SERVER.format(
        name=name,
        hosts=", ".join(f'"{host}"' for host in hosts),
        listen=listen,
        port=port,
        superlink_port=superlink_port,
    )
    (folder / SERVER / "server.toml").write_text(text)
    add_operator(folder, "admin", days=365)
    (folder / "ca.crt").write_bytes((folder / AUTHORITY / "ca.crt").read_bytes())
    (folder / "run.yaml").write_text(_RUN.format())


def certify_server(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Writes the server's certificate anew, with a new key; the old pair is replaced whole.

    Raises:
        ConfigError: If the authority's key is not there.
    """
    tls = folder / SERVER / "tls"
    named = tuple(dict.fromkeys((*hosts, *LOOPBACK)))
    for stale in tls.glob("renewed.*"):
        stale.unlink()
    authority.certify(folder / AUTHORITY, tls, "renewed", "server", days, named)
    for ending in ("key", "crt"):
        (tls / f"renewed.{ending}").replace(tls / f"server.{ending}")
    (tls / "ca.crt").write_bytes((folder / AUTHORITY / "ca.crt").read_bytes())


def add_operator(folder: Path, name: str, days: int) -> Path:
    """Writes the folder of a new operator and tells the server's folder of him; returns it.

    The first operator's folder is ``operator``, another's ``operator-<name>``.

    Raises:
        ConfigError: If there is an operator of this name.
    """
    settings = ServerFolder(folder / SERVER).settings
    path = folder / (OPERATOR if name == "admin" else f"{OPERATOR}-{name}")
    if path.exists():
        raise ConfigError(f"{path}: needed a new operator, found one of this name")
    path.mkdir(mode=0o700)
    authority.certify(folder / AUTHORITY, path, name, "operator", days)
    (path / "ca.crt").write_bytes((folder / AUTHORITY / "ca.crt").read_bytes())
    host = settings.hosts[0]
    text = _OPERATOR.format(
        operator=name,
        name=settings.name,
        host=f"[{host}]" if ":" in host else host,
        port=settings.port,
    )
    (path / "operator.toml").write_text(text)
    known = folder / SERVER / "operators" / f"{name}.crt"
    known.write_bytes((path / f"{name}.crt").read_bytes())
    return path
