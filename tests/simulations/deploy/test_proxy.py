"""The door: whose calls nginx lets through. Where nginx is installed, nginx itself is asked."""

import re
import shutil
import subprocess
from pathlib import Path

import flwr.superlink.routers.fleet.router as fleet
import pytest

from fedface.config import ConfigError
from simulations.deploy import found
from simulations.deploy.proxy import FLEET_CALLS, nginx, operator_serials, write_configuration
from simulations.deploy.settings import ServerFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    """A server's folder with two operators."""
    path = tmp_path_factory.mktemp("proxy") / "fed"
    found.found(path, "demo", ("localhost",), "127.0.0.1", 8443, 9443)
    found.add_operator(path, "second", days=5)
    return ServerFolder(path / "server")


def test_every_fleet_call_of_flower_is_let_through_or_left_out_on_purpose() -> None:
    calls = {route.path.rpartition("/")[2] for route in fleet.router.routes}  # type: ignore[attr-defined]
    assert calls == {*FLEET_CALLS, "register-node", "unregister-node"}


def test_control_calls_need_a_certificate_that_is_known(folder: ServerFolder) -> None:
    text = write_configuration(folder, None).read_text()
    control = re.search(r"location ~ \^/v1/control/.*?\n    \}", text, re.DOTALL)
    assert control is not None
    verified, known, passed = (
        control[0].index(part)
        for part in ("$ssl_client_verify != SUCCESS", "$operator = 0", "proxy_pass")
    )
    assert verified < passed
    assert known < passed
    serials = list(operator_serials(folder))
    assert len(set(serials)) == 2
    assert all(f'"{serial}" 1;' in text for serial in serials)
    assert "/v1/runtime" not in text
    assert "location / { return 404" in text


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_nginx_takes_the_configuration(folder: ServerFolder) -> None:
    path = write_configuration(folder, None)
    command = [nginx(), "-p", str(folder.path), "-e", "stderr", "-t", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_path_that_nginx_would_misread_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a; b"
    found.found(path, "demo", ("localhost",), "127.0.0.1", 8443, 9443)
    with pytest.raises(ConfigError, match="needed a path without spaces"):
        write_configuration(ServerFolder(path / "server"), None)
