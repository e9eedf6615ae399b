"""The door of a server: nginx, which lets sites reach Flower's Fleet API and nobody the rest.

In Flower 1.41 one port serves three interfaces. The Fleet API asks every site for a signature; the
Control API (submit code, register sites) asks for nothing, and the Runtime API gives pending work
to whoever asks first. So Flower listens on loopback, and this proxy passes on the Fleet calls,
the Control calls of those whose certificate lies in the operators' folder, and nothing else.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from fedface.config import ConfigError
from simulations.deploy.authority import read_certificate
from simulations.deploy.settings import ServerFolder

FLEET_CALLS = (
    "activate-node",
    "confirm-message-received",
    "deactivate-node",
    "get-fab",
    "get-run",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
"""What a site has to ask; ``register-node`` and ``unregister-node`` are left to operators."""

REFUSED = "control calls need the certificate of an operator of this federation"

_CONFIGURATION = """\
# Written by `fedface server up`; changes are lost.
daemon off;
{user}pid {folder}/proxy/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  log_format calls '$time_iso8601 $remote_addr $request_method $uri $status '
                   '$request_length $bytes_sent $request_time "$ssl_client_s_dn"';
  access_log {folder}/proxy/access.log calls;
  client_body_temp_path {folder}/proxy/body;
  proxy_temp_path {folder}/proxy/reply;
  fastcgi_temp_path {folder}/proxy/unused;
  uwsgi_temp_path {folder}/proxy/unused;
  scgi_temp_path {folder}/proxy/unused;
  default_type application/json;
  server_tokens off;
  merge_slashes off;
  limit_conn_zone $binary_remote_addr zone=address:1m;
  map $ssl_client_serial $operator {{
    default 0;
{operators}  }}
  upstream superlink {{ server 127.0.0.1:{superlink_port}; keepalive 32; }}
  server {{
    listen {listen}:{port} ssl;
    ssl_certificate {tls}/server.crt;
    ssl_certificate_key {tls}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_client_certificate {tls}/ca.crt;
    ssl_verify_client optional;
    ssl_verify_depth 1;
    limit_conn address {max_connections};
    client_max_body_size {max_body_mib}m;
    client_header_timeout 15s;
    client_body_timeout 30s;
    send_timeout 60s;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {tls}/ca.crt;
    proxy_ssl_name localhost;
    proxy_connect_timeout 60s;
    proxy_read_timeout 300s;
    location ~ ^/v1/fleet/({fleet})$ {{
      proxy_pass https://superlink;
    }}
    location ~ ^/v1/control/[a-z-]+$ {{
      if ($ssl_client_verify != SUCCESS) {{ return 403 '{{"detail": "{refused}"}}'; }}
      if ($operator = 0) {{ return 403 '{{"detail": "{refused}"}}'; }}
      proxy_buffering off;
      proxy_read_timeout 1d;
      proxy_pass https://superlink;
    }}
    location / {{ return 404 '{{"detail": "there is nothing here"}}'; }}
  }}
}}
"""


def write_configuration(folder: ServerFolder, user: str | None) -> Path:
    """Writes nginx's configuration and the folders it needs; returns the file.

    Args:
        folder: The server's folder; ``operators/*.crt`` are those who may give orders.
        user: Whom nginx's workers run as, where nginx is started by root; else None.

    Raises:
        ConfigError: If a certificate cannot be read or the folder's path cannot be written there.
    """
    settings, place = folder.settings, folder.path.absolute()
    if any(c in str(place) for c in " ;{}'\"$\\\n"):
        raise ConfigError(f"{place}: needed a path without spaces, quotes, ;, {{, }} or $")
    (place / "proxy").mkdir(mode=0o700, exist_ok=True)
    text = _CONFIGURATION.format(
        user=f"user {user};\n" if user else "",
        folder=place,
        tls=place / "tls",
        operators="".join(f'    "{serial}" 1;\n' for serial in operator_serials(folder)),
        superlink_port=settings.superlink_port,
        listen=f"[{settings.listen}]" if ":" in settings.listen else settings.listen,
        port=settings.port,
        max_connections=settings.max_connections,
        max_body_mib=settings.max_body_mib,
        fleet="|".join(FLEET_CALLS),
        refused=REFUSED,
    )
    path = place / "proxy" / "nginx.conf"
    path.write_text(text)
    return path


def operator_serials(folder: ServerFolder) -> Iterable[str]:
    """Returns the serial numbers of the operators' certificates, as nginx writes them."""
    for path in sorted(folder.operators.glob("*.crt")):
        serial = f"{read_certificate(path).serial_number:X}"
        yield serial if len(serial) % 2 == 0 else f"0{serial}"


def nginx() -> str:
    """Returns nginx's path.

    Raises:
        ConfigError: If it is not installed.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise ConfigError("server up: needed nginx (apt install nginx-light), found none")
    return found
