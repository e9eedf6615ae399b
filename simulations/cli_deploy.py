"""The command line of a federation: ``fedface federation``, ``server``, ``submit``, ``status``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_speech import errors, fail, say

federation = typer.Typer(help="Found a federation, and say who belongs to it.")
server = typer.Typer(help="The server of a federation.")

Federation = Annotated[
    Path, typer.Argument(help="The folder that `fedface federation init` wrote (with authority/).")
]
Operator = Annotated[
    Path,
    typer.Option(
        "--operator",
        envvar="FEDFACE_OPERATOR",
        help="The operator's folder, with operator.toml, certificate and key.",
    ),
]
ServerFolder = Annotated[
    Path,
    typer.Option("--folder", envvar="FEDFACE_SERVER", help="The server's folder (server.toml)."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the command line ``app``."""
    app.add_typer(federation, name="federation", no_args_is_help=True)
    app.add_typer(server, name="server", no_args_is_help=True)
    app.command("submit")(submit)
    app.command("status")(status)


@federation.command("init")
def federation_init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the federation.")],
    host: Annotated[
        list[str], typer.Option("--host", help="A name or address of the server; repeatable.")
    ],
    name: Annotated[str, typer.Option("--name", help="The federation's name.")] = "federation",
    listen: Annotated[str, typer.Option("--listen", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="The one public port.")] = 8443,
    superlink_port: Annotated[
        int, typer.Option("--superlink-port", help="Flower's port, on loopback.")
    ] = 9443,
) -> None:
    """Write authority, server certificate, the first operator's folder and an example run."""
    with errors():
        from simulations.deploy import authority, found

        found.found(folder, name, tuple(host), listen, port, superlink_port)
        certificate = authority.read_certificate(folder / "ca.crt")
    say(f"{folder}/authority   the authority's key: keep it off line")
    say(f"{folder}/server      goes to the server: fedface server up --folder server")
    say(f"{folder}/operator    goes to the operator: fedface submit run.yaml --operator operator")
    say(f"{folder}/ca.crt      goes to every site; SHA-256 {authority.fingerprint(certificate)}")


@federation.command("operator")
def federation_operator(
    folder: Federation,
    name: Annotated[str, typer.Argument(help="The new operator's name.")],
    days: Annotated[int, typer.Option("--days", min=1, help="How long it is valid.")] = 365,
) -> None:
    """Write another operator's certificate; deleting server/operators/NAME.crt revokes it."""
    with errors():
        from fedface.config import parse_config
        from simulations.deploy import found
        from simulations.deploy.plan import Deployment

        parse_config({"sites": [name]}, Deployment, "operator")  # the same kind of name
        say(str(found.add_operator(folder, name, days)))
    say("copy server/operators to the server and start it again")


@federation.command("renew")
def federation_renew(
    folder: Federation,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Other names than server.toml has.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long it is valid.")] = 365,
) -> None:
    """Write the server's certificate anew; copy server/tls to the server and start it again."""
    with errors():
        from simulations.deploy import found
        from simulations.deploy.settings import ServerFolder as Folder

        hosts = tuple(host or Folder(folder / found.SERVER).settings.hosts)
        found.certify_server(folder, hosts, days)
    say(f"{folder}/server/tls renewed for {', '.join(hosts)}")


@federation.command("admit")
def federation_admit(
    name: Annotated[str, typer.Argument(help="The site's name, as runs will list it.")],
    key: Annotated[Path, typer.Argument(help="The site's public key (keys/NAME.pub).")],
    operator: Operator = Path("operator"),
) -> None:
    """Admit a site: its key may connect from now on."""
    with errors():
        from fedface.config import parse_config
        from simulations.deploy import authority
        from simulations.deploy.control import connected
        from simulations.deploy.plan import Deployment
        from simulations.deploy.settings import OperatorFolder

        parse_config({"sites": [name]}, Deployment, "admit")
        public = authority.read_site_key(key)
        with connected(OperatorFolder(operator).settings) as control:
            control.admit(name, public)
    say(f"site {name} is admitted")


@federation.command("expel")
def federation_expel(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    operator: Operator = Path("operator"),
) -> None:
    """Take a site's admission away: its key is refused from now on."""
    with errors():
        from simulations.deploy.control import connected
        from simulations.deploy.settings import OperatorFolder

        with connected(OperatorFolder(operator).settings) as control:
            control.expel(name)
    say(f"site {name} is expelled")


@server.command("up")
def server_up(folder: ServerFolder = Path("server")) -> None:
    """Run the server until it is told to stop: Flower's SuperLink behind a TLS proxy."""
    with errors():
        from simulations.deploy.serving import serve_federation
        from simulations.deploy.settings import ServerFolder as Folder

        code = serve_federation(Folder(folder), say)
    sys.exit(code)


@server.command("rewind")
def server_rewind(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    to_round: Annotated[
        int, typer.Option("--to-round", min=0, help="The last round to keep; 0 starts anew.")
    ],
) -> None:
    """Forget a run's later rounds, so that --resume trains them again without who withdrew."""
    with errors():
        from simulations.rewind import rewind

        rewind(run, to_round)
    say(f"{run}: set back to round {to_round}; continue with --resume")


def submit(
    config: Annotated[Path, typer.Argument(help="YAML file of the run, with a deployment.")],
    operator: Operator = Path("operator"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the last completed round.")
    ] = False,
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, help="How often a killed run is continued.")
    ] = 3,
) -> None:
    """Submit a run to real sites, show how it goes, and fail if it fails."""
    with errors():
        from simulations.deploy.control import connected, follow
        from simulations.deploy.order import Order, deployment_of
        from simulations.deploy.settings import OperatorFolder
        from simulations.schema import load_run

        run = load_run(config)
        deployment_of(run)
        with connected(OperatorFolder(operator).settings) as control:
            found = follow(control, Order(run, resume), restarts, say)
    if found.outcome != "completed":
        fail(f"run {found.run_id} {found.outcome}: {found.why}", code=1)
    say(f"run {found.run_id} completed; its folder is runs/{run.name} of the server")


def status(
    operator: Operator = Path("operator"),
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many runs to show.")] = 10,
) -> None:
    """Show which sites are connected and how the latest runs stand."""
    with errors():
        from simulations.deploy.control import connected
        from simulations.deploy.settings import OperatorFolder

        with connected(OperatorFolder(operator).settings) as control:
            nodes, runs = control.nodes(), control.runs(limit)
    for node in nodes:
        say(f"site {node.name}: {node.status}")
    for run in runs:
        outcome = f", {run.outcome}" if run.finished else ""
        why = f": {run.why}" if run.outcome == "failed" else ""
        say(f"run {run.run_id} of {run.pending_at}: {run.status}{outcome}{why}")
    if not nodes:
        say("no site is admitted")
