"""The commands of a site's data protection officer: ``fedface site policy``, ``receipts``,
``withdraw`` and ``membership``, and ``fedface server rewind``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.cli_deploy import SiteFolder, fail, say
from simulations.cli_deploy import _errors as errors


def add_to(site: typer.Typer, server: typer.Typer) -> None:
    """Adds the commands to the command lines of sites and servers."""
    site.command("policy")(site_policy)
    site.command("receipts")(site_receipts)
    site.command("withdraw")(site_withdraw)
    site.command("membership")(site_membership)
    server.command("rewind")(server_rewind)


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
