"""``fedface server up``: Flower's SuperLink on loopback, and the proxy that stands before it."""

import getpass
import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import closing
from errno import EADDRINUSE
from time import monotonic, sleep

from fedface.config import ConfigError
from simulations.deploy.authority import require_in_date, require_private
from simulations.deploy.processes import flower_environment, program, run_together
from simulations.deploy.proxy import nginx, operator_serials, write_configuration
from simulations.deploy.settings import SERVER, ServerFolder, ServerSettings


def serve_federation(folder: ServerFolder, say: Callable[[str], None]) -> int:
    """Runs the server in ``folder`` until it is told to stop; returns the exit code.

    Args:
        folder: As ``fedface federation init`` wrote it.
        say: Told what happens.

    Raises:
        ConfigError: If a file, a program or a port is not as it needs to be.
    """
    settings = folder.settings
    check_server(folder, settings)
    configuration = write_configuration(folder, getpass.getuser() if os.geteuid() == 0 else None)
    proxy = [nginx(), "-p", str(folder.path.absolute()), "-e", "stderr", "-c", str(configuration)]
    _test_configuration(proxy)
    for address, port in ((settings.listen, settings.port), ("127.0.0.1", settings.superlink_port)):
        _require_free(address, port)
    tls = folder.tls.absolute()
    superlink = [
        program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(settings.superlink_port)),
        *("--ssl-ca-certfile", str(tls / "ca.crt")),
        *("--ssl-certfile", str(tls / "server.crt"), "--ssl-keyfile", str(tls / "server.key")),
        *("--database", str(folder.path.absolute() / "state.db")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]
    n_operators = len(list(operator_serials(folder)))
    say(
        f"federation {settings.name}: listening on {settings.listen}:{settings.port}, "
        f"{n_operators} operator{'s' if n_operators != 1 else ''}"
    )
    os.umask(0o077)
    return run_together(
        {"flower-superlink": superlink, "nginx": proxy},
        flower_environment(folder.path, SERVER, "flwr-serverapp"),
        say,
    )


def check_server(folder: ServerFolder, settings: ServerSettings) -> None:
    """Checks keys, certificates and their dates.

    Raises:
        ConfigError: If one is missing, open to others, expired or not for this machine's names.
    """
    require_private(folder.tls / "server.key")
    require_in_date(folder.tls / "server.crt", "fedface federation renew")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder.tls / "server.crt", folder.tls / "server.key")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{folder.tls}: needed server.crt and its key, found: {error}") from None
    if not list(folder.operators.glob("*.crt")):
        raise ConfigError(f"{folder.operators}: needed an operator's certificate, found none")
    if not os.access(folder.path, os.W_OK):
        raise ConfigError(f"{folder.path}: needed a writable folder, found a read-only one")


def _test_configuration(proxy: list[str]) -> None:
    done = subprocess.run([*proxy, "-t"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"nginx: needed a configuration it takes, found: {done.stderr.strip()}")


def _require_free(address: str, port: int, patience: float = 20.0) -> None:
    """Waits until a port is free: what was killed before may still be about to end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    deadline = monotonic() + patience
    while True:
        with closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                return
            except OSError as error:
                if error.errno != EADDRINUSE or monotonic() > deadline:
                    raise ConfigError(
                        f"server.toml: needed port {port} of {address} free, "
                        f"found: {error.strerror}"
                    ) from None
        sleep(0.5)
