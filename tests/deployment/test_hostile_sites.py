"""The faults of the nine probes (docs/reliability.md) at real sites that have no gate any more."""

import pytest

from tests.deployment.world import SITES, WHY_NOT, World, run_yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no network namespaces: {WHY_NOT}"),
]

FAULTS = """
import os
from signal import SIGKILL

import numpy as np
import simulations.deploy.site_app as site_app
from clients.face import FaceClient
from flwr.app import Array

site_app.site_gate = lambda *arguments: None
honest = FaceClient.train

def not_a_number(reply):
    arrays, name = first(reply)
    arrays[name] = Array(np.full_like(arrays[name].numpy(), np.nan))

def missing_key(reply):
    arrays, name = first(reply)
    del arrays[name]

def wrong_shape(reply):
    arrays, name = first(reply)
    arrays[name] = Array(np.ones((3, 3), np.float32))

def many(reply):
    reply.content["metrics"]["num-examples"] = 10**9

def negative(reply):
    reply.content["metrics"]["num-examples"] = -5

def raises(reply):
    raise RuntimeError("the disk of the site is on fire")

def dies(reply):
    os.kill(os.getpid(), SIGKILL)

def first(reply):
    arrays = reply.content["arrays"]
    return arrays, next(iter(arrays))

FAULT = {
    ("a", 1): not_a_number, ("b", 1): many, ("c", 1): missing_key,
    ("a", 2): wrong_shape, ("b", 2): negative, ("c", 2): raises,
    ("a", 3): dies,
}

def train(self, message, context):
    reply = honest(self, message, context)
    site = os.environ["FEDFACE_SITE"].rpartition("site-")[2]
    FAULT.get((site, message.content["config"]["server-round"]), lambda reply: None)(reply)
    return reply

FaceClient.train = train
"""


def test_each_fault_costs_the_site_its_round_and_nobody_else(world: World) -> None:
    """Sites a, b and c send something else in each round; d is honest throughout."""
    world.ready(*SITES)
    for name in ("a", "b", "c"):
        world.alter(name, FAULTS)
    content = run_yaml(
        "faults", federation={"n_rounds": 4, "min_valid_replies": 1, "max_failed_rounds": 1}
    )
    submitted = world.submitted(world.write(content))
    code = world.end(submitted)
    for name in ("a", "b", "c"):
        world.honest(name)
    assert code == 0, submitted.text()
    rounds = world.events("faults", "round")
    used = [[client["client"] for client in event["clients"]] for event in rounds]
    assert used == [[3], [3], [1, 2, 3], [0, 1, 2, 3]]
    reasons = [event["rejected"] for event in rounds]
    for server_round, client, why in (
        (1, "0", "finite"),
        (1, "1", "num-examples"),
        (1, "2", "missing"),
        (2, "0", "shape"),
        (2, "1", "num-examples"),
        (2, "2", "the disk of the site is on fire"),
        (3, "0", "stopped responding"),
    ):
        assert why in reasons[server_round - 1][client], reasons
    assert reasons[3] == {}
    assert all(tensor.isfinite().all() for tensor in world.weights("faults", 4).values())
