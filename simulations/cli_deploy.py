"""The command line of real sites: ``fedface federation``, ``server``, ``site``, ``submit``,
``status``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

federation = typer.Typer(help="Found a federation, and say who belongs to it.")
server = typer.Typer(help="The server of a federation.")
site = typer.Typer(help="One site of a federation: its keys, its data and what leaves it.")

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
SiteFolder = Annotated[
    Path,
    typer.Option(
        "--folder", envvar="FEDFACE_SITE", help="The site's folder, made by `fedface site init`."
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
    app.add_typer(site, name="site", no_args_is_help=True)
    app.command("submit")(submit)
    app.command("status")(status)


def fail(message: str, code: int) -> NoReturn:
    """Says what is wrong and ends the process with ``code``."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def say(message: str) -> None:
    """Prints one line at once."""
    typer.echo(message)
    sys.stdout.flush()


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
    with _errors():
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
    with _errors():
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
    with _errors():
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
    with _errors():
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
    with _errors():
        from simulations.deploy.control import connected
        from simulations.deploy.settings import OperatorFolder

        with connected(OperatorFolder(operator).settings) as control:
            control.expel(name)
    say(f"site {name} is expelled")


@server.command("up")
def server_up(folder: ServerFolder = Path("server")) -> None:
    """Run the server until it is told to stop: Flower's SuperLink behind a TLS proxy."""
    with _errors():
        from simulations.deploy.serving import serve_federation
        from simulations.deploy.settings import ServerFolder as Folder

        code = serve_federation(Folder(folder), say)
    sys.exit(code)


@site.command("init")
def site_init(
    name: Annotated[str, typer.Argument(help="The site's name: lower case, digits, hyphens.")],
    data: Annotated[Path, typer.Option("--data", help="Aligned faces: <data>/<person>/<image>.")],
    server_address: Annotated[
        str, typer.Option("--server", help="HOST:PORT of the federation's server.")
    ],
    ca: Annotated[Path, typer.Option("--ca", help="The federation's ca.crt.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="The site's new folder (default: its name).")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=16, help="Resize faces to so many pixels.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Flower's port, on loopback.")
    ] = 9094,
    config: Annotated[
        Path | None, typer.Option("--config", help="Try the network of this run's YAML file.")
    ] = None,
) -> None:
    """Write a site's folder with new keys, look at its data and train one step for a try."""
    with _errors():
        from simulations.deploy import authority
        from simulations.deploy.site import new_site

        made = new_site(folder or Path(name), name, data, server_address, ca, size, port)
        print_check(made.path, config)
        certificate = authority.read_certificate(made.path / "ca.crt")
    say(f"the federation's certificate: SHA-256 {authority.fingerprint(certificate)}")
    say(f"send {made.path}/keys/{name}.pub to an operator; policy.toml lets nothing out yet")


@site.command("check")
def site_check(
    folder: SiteFolder = Path("."),
    config: Annotated[
        Path | None, typer.Option("--config", help="Try the network of this run's YAML file.")
    ] = None,
) -> None:
    """Look at a site's settings and data, train one step for a try, and reach for the server."""
    with _errors():
        from simulations.deploy.settings import SiteFolder as Folder
        from simulations.deploy.site import check_server

        print_check(folder, config)
        check_server(Folder(folder).settings, say)


@site.command("up")
def site_up(folder: SiteFolder = Path(".")) -> None:
    """Take part until told to stop: Flower's SuperNode with this site's key."""
    with _errors():
        from simulations.deploy.settings import SiteFolder as Folder
        from simulations.deploy.site import take_part

        code = take_part(Folder(folder), say)
    sys.exit(code)


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
    with _errors():
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
    with _errors():
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


def print_check(folder: Path, config: Path | None) -> None:
    """Prints what a site's data are and how a training step went."""
    from simulations.deploy.settings import SiteFolder as Folder
    from simulations.deploy.site_data import check_data, dry_step, faces_of, red_team_of
    from simulations.schema import load_run

    settings = Folder(folder).settings
    Folder(folder).use_cache()
    red_team_of(settings)
    faces = faces_of(settings).load()
    check = check_data(faces)
    say(
        f"{check.n_people} people, {check.n_images} images of {check.size} x {check.size}, "
        f"{check.fewest} to {check.most} each; left out: {len(check.skipped)}"
    )
    for line in check.skipped[:10]:
        say(f"  {line}")
    loss, seconds = dry_step(faces, None if config is None else load_run(config))
    say(f"a training step for a try: loss {loss:.3f}, {seconds:.1f} s; nothing was kept")


@contextmanager
def _errors() -> Iterator[None]:
    """Ends the process with one line: code 2 for files and settings, 1 for what went wrong."""
    from fedface.config import ConfigError

    try:
        yield
    except ConfigError as error:
        fail(str(error), code=2)
    except KeyboardInterrupt:
        fail("stopped", code=130)
    except (ValueError, OSError, RuntimeError) as error:
        fail(str(error), code=1)
