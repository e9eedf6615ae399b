"""The command line of a site: ``fedface site``, from its first folder to what has left it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.cli_speech import SiteFolder, errors, fail, say

site = typer.Typer(help="One site of a federation: its keys, its data and what leaves it.")


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the command line ``app``."""
    app.add_typer(site, name="site", no_args_is_help=True)


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
    with errors():
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
    with errors():
        from simulations.deploy.settings import SiteFolder as Folder
        from simulations.deploy.site import check_server

        print_check(folder, config)
        check_server(Folder(folder).settings, say)


@site.command("up")
def site_up(folder: SiteFolder = Path(".")) -> None:
    """Take part until told to stop: Flower's SuperNode with this site's key."""
    with errors():
        from simulations.deploy.settings import SiteFolder as Folder
        from simulations.deploy.site import take_part

        code = take_part(Folder(folder), say)
    sys.exit(code)


@site.command("policy")
def site_policy(
    config: Annotated[Path, typer.Argument(help="YAML file of the run that the site agreed to.")],
    buffers: Annotated[
        bool, typer.Option("--buffers", help="Let batch statistics and counters out, too.")
    ] = False,
    size: Annotated[
        int | None, typer.Option("--size", min=16, help="Pixels of the site's faces.")
    ] = None,
) -> None:
    """Print a policy that lets the updates of one run out and nothing else."""
    with errors():
        from simulations.deploy.site_policy import policy_text
        from simulations.schema import load_run

        typer.echo(policy_text(load_run(config), buffers, size), nl=False)


@site.command("receipts")
def site_receipts(
    folder: SiteFolder = Path("."),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check signatures, order and that none is missing.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="The site's public key, from a place you trust.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="A hash noted earlier; it must be in the chain.")
    ] = None,
) -> None:
    """Show what has left the site, or check that the record of it is whole (exit code 1 if not)."""
    with errors():
        from clients.receipts import CHAIN, Receipts
        from clients.receipts import verify as verified
        from simulations.gates import RECEIPTS

        place = folder if (folder / CHAIN).exists() else folder / RECEIPTS
        if verify or key or anchor:
            found = verified(place, key, anchor)
            say(f"{found.n} receipts hold; the last one's hash (note it): {found.head}")
            return
        for body in Receipts(place).bodies():
            say(_line(body))


@site.command("withdraw")
def site_withdraw(
    person: Annotated[str, typer.Argument(help="The name of the person's folder of images.")],
    folder: SiteFolder = Path("."),
) -> None:
    """Remove a person from data, cache and heads, and say which models have to be trained again."""
    with errors():
        from clients.people import Register
        from clients.withdrawal import withdraw
        from simulations.deploy.settings import SiteFolder as Folder

        root = None
        if (folder / "site.toml").is_file():
            root = Folder(folder).settings.faces_root
            Folder(folder).use_cache()
        elif not folder.is_dir():
            fail(f"{folder}: needed a site's folder, found none", code=2)
        done = withdraw(Register(folder), person, root)
    again = "" if done.new else " (it was there already)"
    say(f"tombstone {done.pseudonym}{again}: nobody trains on this person here any more")
    say(
        f"deleted: {done.images} images, {done.cached} cached data sets, the row in {done.heads} "
        f"heads, {done.dropped_heads} whole heads, {done.released} kept updates"
    )
    if root is None:
        say("images: this site's data are not a folder of people; delete the originals yourself")
    if not done.known:
        say("nothing of this person was found: check the name, it is that of the images' folder")
    for verdict in done.verdicts:
        number = f" {verdict.rounds[0]}" if verdict.action == "retrain from round" else ""
        say(f"run {verdict.run}: {verdict.action}{number} ({_why(verdict.rounds)})")
        if verdict.rounds:
            say(f"  fedface server rewind runs/{verdict.run} --to-round {verdict.keep}")
            say("  then submit (or run) it again with --resume")
    if any(verdict.rounds for verdict in done.verdicts):
        say("models that were handed on or exported still know the person: recall those copies")


@site.command("membership")
def site_membership(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    person: Annotated[Path, typer.Option("--person", help="A folder of the person's images.")],
    never_seen: Annotated[
        Path, typer.Option("--never-seen", help="Folder of people whom nobody trained on.")
    ],
    members: Annotated[
        Path | None,
        typer.Option("--members", help="Folder of people who are in the training, for the power."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="An exported model that never saw the person."),
    ] = None,
) -> None:
    """Test whether a model still shows that a person was in its training."""
    with errors():
        from simulations.membership import membership_of

        test = membership_of(model, person, never_seen, members, reference)
    power = (
        "unknown (give --members)"
        if test.power is None
        else f"{test.power:.3f} [{test.power_low:.3f}, {test.power_high:.3f}]"
    )
    say(f"verdict at 5 %: {test.verdict()}")
    say(f"p = {test.p_value:.4f} among {test.n_never_seen} never-seen people")
    say(f"power, as the AUC of members against never-seen people: {power}")


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


def _line(body: dict[str, Any]) -> str:
    """One receipt on one line."""
    head = f"{body['sequence']:6d}  {body['time']}  {body['event']:<9}"
    if "run" not in body:
        return f"{head}  {body.get('dropped_bytes', 0)} bytes of a line that a crash cut off"
    where = f"{body['kind']:<8}  run {body['run'][:12]}  round {body['round']}"
    if body["event"] == "denied":
        return f"{head}  {where}  {body['rule']}: {body['detail']}"
    privacy = "" if body["epsilon"] is None else f"  epsilon {body['epsilon']:.4g}"
    norm = "" if body["norm"] is None else f"  norm {body['norm']:.4g}"
    return f"{head}  {where}  {body['bytes']} bytes  {body['tensors']} tensors{norm}{privacy}"


def _why(rounds: tuple[int, ...]) -> str:
    if not rounds:
        return "the person was in none of its rounds here"
    more = f" to {rounds[-1]}" if len(rounds) > 1 else ""
    return f"the person was in {len(rounds)} of its rounds, {rounds[0]}{more}"
