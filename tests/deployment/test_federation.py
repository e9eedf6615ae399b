"""A federation of real processes: TLS, keys, gates, four sites and a stranger, each in a network
namespace of its own. Nothing is faked but the people.
"""

import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.deployment.network import FLWR, SERVER_ADDRESS, wait_for
from tests.deployment.world import SERVER, SITES, WHY_NOT, World, equal, run_yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no network namespaces: {WHY_NOT}"),
]


@pytest.mark.ci
def test_strangers_are_refused(world: World) -> None:
    net = world.net
    world.must("stranger", "federation", "init", "theirs", "--host", SERVER_ADDRESS)
    (world.folder / "flower").mkdir()
    (world.folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{SERVER}"\n'
        f'root-certificates = "{world.folder}/fed/ca.crt"\n'
    )
    app = world.folder / "app"
    app.mkdir()
    (app / "code.py").write_text("app = 1\n")
    (app / "pyproject.toml").write_text(
        '[project]\nname = "theirs"\nversion = "1"\n[tool.flwr.app]\npublisher = "x"\n'
        '[tool.flwr.app.components]\nserverapp = "code:app"\nclientapp = "code:app"\n'
    )
    home = {"FLWR_HOME": str(world.folder / "flower"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    run = net.run("stranger", *FLWR, "run", str(app), "it", **home)
    register = net.run(
        "stranger", *FLWR, "supernode", "register", "site-a/keys/a.pub", "it", **home
    )
    for refused in (run, register):
        assert refused.returncode != 0
        assert "certificate of an operator" in " ".join(refused.stdout.split()), refused.stdout
    # Flower's own port is not to be had from outside, and the door opens for Fleet calls alone.
    direct = net.run("stranger", "curl", "-sk", "-m", "5", f"https://{SERVER_ADDRESS}:9443/health")
    assert direct.returncode == 7, "connection refused"
    codes = {}
    for path in ("v1/runtime/acquire-task", "v1/control/list-runs", "v1/fleet/register-node"):
        code = ("-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20", "-X", "POST")
        url = f"https://{SERVER}/{path}"
        codes[path] = net.run("stranger", "curl", "--cacert", "fed/ca.crt", *code, url).stdout
    assert codes == {
        "v1/runtime/acquire-task": "404",
        "v1/control/list-runs": "403",
        "v1/fleet/register-node": "404",
    }
    # An operator of another federation: his certificate is none here, and ours is none to him.
    (world.folder / "theirs" / "operator" / "ca.crt").write_bytes(
        (world.folder / "fed" / "ca.crt").read_bytes()
    )
    other = world.fedface("stranger", "status", "--operator", "theirs/operator")
    assert other.returncode != 0
    assert "admitted" not in other.stdout
    # The server's own certificate gives no orders either.
    server = world.folder / "fed" / "server" / "tls"
    pair = ("--cert", str(server / "server.crt"), "--key", str(server / "server.key"))
    url = f"https://{SERVER}/v1/control/list-runs"
    as_server = net.run(
        "stranger", "curl", "-s", "-X", "POST", "--cacert", "fed/ca.crt", *pair, url
    )
    assert "400 Bad Request" in as_server.stdout


def test_sites_with_an_unknown_key_or_another_authority_are_refused(world: World) -> None:
    for folder, ca in (("unknown", "fed/ca.crt"), ("misled", "theirs/ca.crt")):
        if not (world.folder / ca).exists():
            world.must("stranger", "federation", "init", "theirs", "--host", SERVER_ADDRESS)
        world.must(
            "stranger",
            *("site", "init", "stranger", "--data", "faces/a", "--server", SERVER),
            *("--ca", ca, "--folder", folder),
        )
    unknown = world.fedface("stranger", "site", "up", "--folder", "unknown")
    assert unknown.returncode not in (0, 2)
    assert "has an operator admitted" in unknown.stdout
    misled = world.fedface("stranger", "site", "up", "--folder", "misled")
    assert misled.returncode == 2
    assert "needed the certificate of the federation" in misled.stdout
    assert "stranger" not in world.operator("status").stdout


def test_keys_are_private_and_no_secret_is_in_a_log(world: World) -> None:
    secrets = [path for path in world.folder.rglob("*") if is_secret(path)]
    assert len(secrets) >= 6
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    needles = [
        line for path in secrets for line in path.read_text(errors="replace").splitlines()[1:2]
    ]
    logs = [*world.folder.glob("*.log"), *(world.folder / "fed" / "server").rglob("*.log")]
    for log in logs:
        text = log.read_text(errors="replace")
        assert not any(needle in text for needle in needles), log


def is_secret(path: Path) -> bool:
    return path.is_file() and (
        path.suffix == ".key" or (path.parent.name == "keys" and not path.suffix)
    )


@pytest.mark.ci
def test_an_honest_run_gives_the_very_weights_of_the_simulation(world: World) -> None:
    world.ready(*SITES)
    file = world.write(run_yaml("honest"))
    done = world.operator("submit", file)
    assert done.returncode == 0, done.stdout
    rounds = world.events("honest", "round")
    assert [len(event["clients"]) for event in rounds] == [4, 4]
    assert not any(event["rejected"] for event in rounds)
    assert equal(world.weights("honest", 2), world.simulated(file, "honest", 2))
    for name in SITES:
        said = world.must(name, "site", "receipts", "--folder", f"site-{name}", "--verify")
        assert "2 receipts hold" in said


def test_a_second_machine_with_the_same_key_is_refused(world: World) -> None:
    world.ready("a")
    shutil.copytree(world.folder / "site-a", world.folder / "copy")
    second = world.fedface("stranger", "site", "up", "--folder", "copy")
    assert second.returncode not in (0, 2)
    assert "does another machine use this key" in second.stdout
    assert world.is_online("a")


@pytest.mark.ci
def test_a_malicious_site_is_pruned(world: World) -> None:
    world.ready(*SITES)
    world.red_team("d")
    content = run_yaml("pruned", aggregator={"name": "ariba"}, federation={"n_rounds": 1})
    submitted = world.submitted(world.write(content))
    code = world.end(submitted)
    world.honest("d")
    assert code == 0, submitted.text()
    (event,) = world.events("pruned", "round")
    assert len(event["clients"]) == 4
    assert event["pruned"] == [3]


def test_a_malicious_site_is_pruned_one_is_cut_off_and_one_comes_late(world: World) -> None:
    world.red_team("d")
    world.down()
    world.up("a", "b", "d")
    file = world.write(
        run_yaml(
            "hostile",
            aggregator={"name": "ariba"},
            federation={"n_rounds": 3, "min_clients": 3, "join_timeout": 20},
        )
    )
    submitted = world.submitted(file)
    wait_for(lambda: "ROUND 1" in world.sites["b"].text(), "site b is at work in round 1")
    world.start("c")
    wait_for(lambda: "ROUND 2" in world.sites["b"].text(), "site b is at work in round 2")
    world.net.link("b", up=False)
    code = world.end(submitted)
    world.net.link("b", up=True)
    world.honest("d")
    assert code == 0, submitted.text()
    rounds = world.events("hostile", "round")
    who = [[client["client"] for client in event["clients"]] for event in rounds]
    assert who == [[0, 1, 3], [0, 2, 3], [0, 2, 3]], "c came late, b was cut off in round 2"
    assert "1" in rounds[1]["rejected"]
    assert [event["pruned"] for event in rounds] == [[3], [3], [3]], rounds
    wait_for(lambda: world.is_online("b"), "site b is back", 600)


def test_a_run_goes_on_after_kill_9_of_the_whole_server(world: World) -> None:
    """Its cohorts are drawn, too: whoever is drawn depends on seed and round alone."""
    world.ready(*SITES)
    content = run_yaml("killed", federation={"clients_per_round": 2, "n_rounds": 3})
    submitted = world.submitted(world.write(content))
    wait_for(lambda: world.events("killed", "evaluation"), "the first round is complete")
    assert world.server is not None
    world.server.kill()
    world.server_up()
    assert world.end(submitted) == 0, submitted.text()
    assert "continuing after its last round" in submitted.text()
    assert [event["round"] for event in world.events("killed", "round")] == [1, 2, 3]
    unbroken = world.write({**content, "name": "unbroken"})
    done = world.operator("submit", unbroken)
    assert done.returncode == 0, done.stdout
    assert equal(world.weights("killed", 3), world.weights("unbroken", 3))
    assert equal(world.weights("killed", 3), world.simulated("killed.yaml", "killed", 3))


EVIL = """
import sys
from pathlib import Path
import simulations.deploy.order as order
from flwr.cli.build import build_fab_from_files
from simulations.cli import app

marker = Path.cwd() / "code-of-the-bundle-was-run"
code = f"open({str(marker)!r}, 'a').write('!')\\napp = None\\n"
project = order._project()
for name in (order.SERVER_APP, order.CLIENT_APP):
    project = project.replace(name, "evil:app")
fab, _ = build_fab_from_files({"pyproject.toml": project.encode(), "evil.py": code.encode()})
order.bundle = lambda: fab
app(sys.argv[1:])
"""


def test_the_code_of_a_bundle_is_never_run(world: World) -> None:
    """Neither at the sites nor at the server, even if an operator submits it."""
    world.ready("a", "b")
    content = run_yaml(
        "evil", federation={"n_clients": 2, "n_rounds": 1}, deployment={"sites": ["a", "b"]}
    )
    (world.folder / "evil.py").write_text(EVIL)
    submit = ("submit", world.write(content), "--operator", "fed/operator")
    done = world.net.run("operator", sys.executable, "evil.py", *submit)
    assert done.returncode == 0, done.stdout
    assert len(world.events("evil", "round")[0]["clients"]) == 2, "the installed fedface answered"
    assert not (world.folder / "code-of-the-bundle-was-run").exists()


def test_a_run_that_fails_says_why_and_so_does_its_exit_code(world: World) -> None:
    nobody = run_yaml(
        "nobody",
        federation={"n_clients": 2, "join_timeout": 3},
        deployment={"sites": ["nobody", "here"]},
    )
    done = world.operator("submit", world.write(nobody))
    assert done.returncode == 1
    assert "failed: federation needs clients 0..1" in done.stdout, done.stdout
    taken = world.operator("submit", "killed.yaml")
    assert taken.returncode == 1
    assert "needed a free run folder" in taken.stdout


def test_a_site_that_is_expelled_is_out(world: World) -> None:
    for verb, where in (("admit", ("site-stranger/keys/stranger.pub",)), ("expel", ())):
        if verb == "admit":
            shutil.copytree(world.folder / "faces" / "a", world.folder / "faces" / "stranger")
            world.new_sites("stranger")
        done = world.operator("federation", verb, "stranger", *where)
        assert done.returncode == 0, done.stdout
        known = "site stranger:" in world.operator("status").stdout
        assert known == (verb == "admit")
    expelled = world.fedface("stranger", "site", "up", "--folder", "site-stranger")
    assert expelled.returncode not in (0, 2)
    assert "has an operator admitted" in expelled.stdout
