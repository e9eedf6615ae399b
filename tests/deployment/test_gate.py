"""What leaves a real site, and what does not: the gate, its receipts, the dates of certificates."""

import shutil
import sys
from hashlib import sha256
from math import prod

import pytest
from safetensors.torch import load_file

from clients.receipts import CHAIN
from simulations.build import build_backbone
from simulations.deploy import authority, found
from simulations.deploy.order import bundle
from simulations.gates import RECEIPTS, shapes_of
from simulations.policies import run_hash
from simulations.schema import load_run
from tests.deployment.network import SERVER_ADDRESS, wait_for
from tests.deployment.world import PORT, SERVER, SITES, WHY_NOT, World, run_yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no network namespaces: {WHY_NOT}"),
]

SENDS_TEMPLATES = """
from clients.face import FaceClient
from flwr.app import Array, ArrayRecord

honest = FaceClient.train

def train(self, message, context):
    reply = honest(self, message, context)
    head = context.state["private-head"]["weight"].numpy()
    if message.content["config"]["server-round"] == 1:
        reply.content["head"] = ArrayRecord({"anna-0.123": Array(head)})
    else:
        arrays = reply.content["arrays"]
        name = next(name for name in arrays if arrays[name].numpy().size >= head.shape[1])
        arrays[name] = Array(head[0].copy())
    return reply

FaceClient.train = train
"""
"""The head as it is in round 1, one prototype in the place of a weight in round 2."""


@pytest.mark.ci
def test_what_a_policy_does_not_allow_does_not_leave(world: World) -> None:
    """a is altered to send its head and a prototype, b has bytes for one round alone, c lets out
    short updates only; d has agreed to this very run and this very program, and is used."""
    world.ready(*SITES)
    file = world.write(run_yaml("gated", federation={"min_valid_replies": 1}))
    run, app = run_hash(load_run(world.folder / file)), sha256(bundle()).hexdigest()
    weights, _ = shapes_of(build_backbone(load_run(world.folder / file), 16))
    least = 4 * sum(prod(shape) for shape in weights.values())
    used = sum(body.get("bytes", 0) for body in receipts_of(world, "b"))
    world.alter("a", SENDS_TEMPLATES)
    world.policy("b", "", byte_budget=f"in_all = {used + 2 * least}")
    world.policy("c", "max_norm = 1e-9")
    world.policy("d", f'runs = ["{run}"]\napps = ["{app}"]')
    before = {name: pushed(world, name) for name in SITES}
    submitted = world.submitted(file)
    code = world.end(submitted)
    for name in SITES:
        world.policy(name, "")
    world.honest("a")
    assert code == 0, submitted.text()
    first, second = world.events("gated", "round")
    assert [client["client"] for client in first["clients"]] == [1, 3]
    assert [client["client"] for client in second["clients"]] == [3]
    denied = "denied by the site's policy: "
    assert denied + "a record that is not on the allow-list" in first["rejected"]["0"]
    assert denied + "an update longer than max_norm" in first["rejected"]["2"]
    assert denied + "a tensor of arrays with another shape or type" in second["rejected"]["0"]
    assert denied + "byte_budget.in_all is spent" in second["rejected"]["1"]
    assert "a record that is not on the allow-list" in submitted.text(), "the operator is told"
    assert nothing_of_the_head_left(world)
    sent = {name: pushed(world, name)[len(before[name]) :] for name in SITES}
    assert len(sent["d"]) > 2 * len(weights), "two updates: a call for each tensor, at least"
    assert len(weights) < len(sent["b"]) < 0.7 * len(sent["d"]), "an update and a refusal"
    assert len(sent["a"]) == len(sent["c"]) == 2, "two refusals"
    assert sum(sent["a"]) < sum(sent["c"]) + 200, "and nothing beside them"
    assert [body["event"] for body in receipts_of(world, "a")[-2:]] == ["denied", "denied"]
    assert "anna-0.123" not in "".join(str(e) for e in (first, second)), "nor does its name"


def receipts_of(world: World, name: str) -> list[dict[str, object]]:
    """A site's receipts; none where it has not answered yet."""
    there = (world.folder / f"site-{name}" / RECEIPTS / CHAIN).is_file()
    return world.receipts(name) if there else []


def pushed(world: World, name: str) -> list[int]:
    """Bytes of each call by which a site has sent a message or a tensor, by the proxy's log."""
    log = (world.folder / "fed" / "server" / "proxy" / "access.log").read_text()
    calls = (line.split() for line in log.splitlines())
    address = f"10.99.{SITES.index(name) + 1}.2"
    return [int(c[5]) for c in calls if c[1] == address and c[3] == "/v1/fleet/push-object"]


def nothing_of_the_head_left(world: World) -> bool:
    """Whether no file of the server holds a row of the head of site a, or the name it was given."""
    heads = (world.folder / "site-a" / "state" / "gated").glob("head-*.safetensors")
    rows = [row.numpy().tobytes() for path in heads for row in load_file(path)["weight"]]
    assert rows
    files = [p for p in (world.folder / "fed" / "server").rglob("*") if p.is_file()]
    assert any(p.name == "state.db" for p in files)
    return not any(
        needle in content
        for content in (path.read_bytes() for path in files)
        for needle in (*rows, b"anna-0.123")
    )


@pytest.mark.ci
def test_receipts_hold_until_a_byte_of_them_is_changed(world: World) -> None:
    for name in SITES:
        n = len(world.receipts(name))
        said = world.must(name, "site", "receipts", "--folder", f"site-{name}", "--verify")
        assert f"{n} receipts hold" in said
    shutil.copytree(world.folder / "site-a" / RECEIPTS, world.folder / "changed")
    chain = world.folder / "changed" / CHAIN
    lines = chain.read_bytes().splitlines(keepends=True)
    place = len(lines) // 2
    lines[place] = lines[place].replace(b'"round":', b'"rounD":', 1)
    chain.write_bytes(b"".join(lines))
    done = world.fedface("a", "site", "receipts", "--folder", "changed", "--verify")
    assert done.returncode == 1
    assert f"{CHAIN}:{place + 1}: " in done.stdout, done.stdout


def test_a_run_that_no_site_has_agreed_to_fails_and_says_why(world: World) -> None:
    world.ready("c", "d")
    world.policy("c", f'runs = ["{"0" * 64}"]')
    world.policy("d", f'apps = ["{"0" * 64}"]')
    content = run_yaml(
        "not-agreed",
        federation={"n_clients": 2, "n_rounds": 1, "min_valid_replies": 1},
        deployment={"sites": ["c", "d"]},
    )
    done = world.operator("submit", world.write(content))
    for name in ("c", "d"):
        world.policy(name, "")
    assert done.returncode == 1
    (event,) = world.events("not-agreed", "round")
    assert "run that is not on the allow-list" in event["rejected"]["0"]
    assert "app that is not on the allow-list" in event["rejected"]["1"]


def test_an_expired_operator_is_refused(world: World) -> None:
    folder = world.folder / "former"
    shutil.copytree(world.folder / "fed" / "operator", folder)
    for path in folder.glob("admin.*"):
        path.unlink()
    authority.certify(world.folder / "fed" / "authority", folder, "admin", "operator", days=0)
    done = world.fedface("operator", "status", "--operator", "former")
    assert done.returncode == 2
    assert "admin.crt: needed a certificate that is valid now" in done.stdout
    # Without that look at his own certificate, the proxy refuses him all the same.
    pair = ("--cert", "former/admin.crt", "--key", "former/admin.key", "--cacert", "fed/ca.crt")
    url = f"https://{SERVER}/v1/control/list-runs"
    called = world.net.run("operator", "curl", "-s", "-m", "20", "-X", "POST", *pair, url)
    assert "400 Bad Request" in called.stdout
    assert "SSL certificate error" in called.stdout


def test_an_expired_server_is_refused_by_sites_and_by_itself(world: World) -> None:
    """A site has a key and no certificate; the certificate that can expire is the server's."""
    assert world.server is not None
    tls = world.folder / "fed" / "server" / "tls"
    valid = {path: path.read_bytes() for path in tls.iterdir()}
    world.down()
    world.server.stop()
    try:
        found.certify_server(world.folder / "fed", (SERVER_ADDRESS,), days=0)
        itself = world.fedface("server", "server", "up", "--folder", "fed/server")
        assert itself.returncode == 2
        assert "needed a certificate that is valid now" in itself.stdout
        assert "fedface federation renew" in itself.stdout
        shown = world.net.start(
            "server",
            "expired.log",
            *(sys.executable, "-c", SHOWS, str(tls / "server.crt"), str(tls / "server.key")),
        )
        wait_for(lambda: "listening" in shown.text(), "the expired server listens")
        site = world.fedface("stranger", "site", "check", "--folder", "site-a")
        assert site.returncode == 2
        assert "needed the certificate of the federation" in site.stdout
        assert "expired" in site.stdout
        up = world.fedface("stranger", "site", "up", "--folder", "site-a")
        assert (up.returncode, "expired" in up.stdout) == (2, True)
        shown.kill()
    finally:
        for path, content in valid.items():
            path.write_bytes(content)
        world.server_up()


SHOWS = f"""
import ssl, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = ThreadingHTTPServer(("{SERVER_ADDRESS}", {PORT}), BaseHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("listening", flush=True)
server.serve_forever()
"""
"""A server that shows the certificate that it is told to."""
