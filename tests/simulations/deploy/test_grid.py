"""Real sites as a grid: who is asked, what he is told, whom nobody asks."""

from collections.abc import Iterable
from types import SimpleNamespace
from uuid import uuid4

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from simulations.deploy.grid import SITE, SitesGrid
from simulations.deploy.plan import Deployment
from strategies.roster import CLIENT_ID, Roster, TooFewClients

pytestmark = pytest.mark.usefixtures("flower_identity")


class Flower:
    """Flower's grid as far as it is used: nodes with names, and mailboxes that answer at once."""

    def __init__(self, **nodes: int) -> None:
        self.nodes = [(name.split("_")[0], node) for name, node in nodes.items()]
        self.sent: list[Message] = []
        self.asked = 0

    def get_nodes(self) -> list[SimpleNamespace]:
        self.asked += 1
        return [SimpleNamespace(name=name, node_id=node) for name, node in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        message.metadata.__dict__["_message_id"] = str(uuid4())
        self.sent.append(message)
        return [message.metadata.message_id]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        wanted = set(ids)
        return [
            Message(RecordDict({"metrics": MetricRecord({"n": 1})}), reply_to=message)
            for message in self.sent
            if message.metadata.message_id in wanted
        ]


def grid_of(flower: Flower, *sites: str) -> tuple[SitesGrid, list[str]]:
    said: list[str] = []
    plan = Deployment(sites=sites, poll_seconds=1e-9)
    return SitesGrid(flower, plan, 60.0, said.append), said  # type: ignore[arg-type]


def train(client: int) -> Message:
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    return Message(content, client, "train", group_id="1")


def test_a_client_is_the_site_at_its_place() -> None:
    flower = Flower(b=22, a=11, other=33)
    grid, _ = grid_of(flower, "a", "b")
    assert grid.get_node_ids() == [0, 1]
    assert grid.connected() == {0: 11, 1: 22}
    (message_id,) = grid.push_messages([train(1)])
    (sent,) = flower.sent
    assert sent.metadata.dst_node_id == 22
    assert sent.content[SITE] == ConfigRecord({CLIENT_ID: 1})
    assert sent.content["config"] == ConfigRecord({"server-round": 1})
    assert sent.metadata.ttl == pytest.approx(60.0)
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id


def test_the_roll_call_is_answered_without_asking_anybody() -> None:
    flower = Flower(a=11, b=22)
    grid, said = grid_of(flower, "a", "b")
    roster = Roster(2)
    roster.call(grid, 2, timeout=5)
    assert roster.nodes == {0: 0, 1: 1}
    assert flower.sent == []
    assert said == ["site a (client 0) is connected", "site b (client 1) is connected"]


def test_a_site_that_is_not_of_the_run_is_never_asked() -> None:
    flower = Flower(other=33)
    grid, _ = grid_of(flower, "a")
    assert grid.get_node_ids() == []
    assert grid.push_messages([train(0)]) == [""]
    assert flower.sent == []
    with pytest.raises(TooFewClients):
        Roster(1).call(grid, 1, timeout=0.2)


def test_a_name_that_two_nodes_bear_is_believed_of_neither() -> None:
    grid, _ = grid_of(Flower(a_1=11, a_2=12, b=22), "a", "b")
    assert grid.connected() == {1: 22}


def test_who_comes_and_goes_is_said_once() -> None:
    flower = Flower(a=11)
    grid, said = grid_of(flower, "a", "b")
    grid.connected()
    grid.connected()
    flower.nodes = [("b", 22)]
    grid.connected()
    assert said == [
        "site a (client 0) is connected",
        "site a (client 0) is gone",
        "site b (client 1) is connected",
    ]


def test_flower_is_not_asked_more_often_than_said() -> None:
    flower = Flower(a=11)
    grid = SitesGrid(flower, Deployment(sites=("a",), poll_seconds=60), 60, print)  # type: ignore[arg-type]
    for _ in range(5):
        grid.connected()
    assert flower.asked == 1
    (message_id,) = grid.push_messages([train(0)])
    assert len(grid.pull_messages([message_id])) == 1
    assert grid.pull_messages([message_id]) == [], "too early to ask again"


def test_messages_can_be_sent_and_replies_awaited() -> None:
    grid, _ = grid_of(Flower(a=11), "a", "b")
    replies = grid.send_and_receive([train(0), train(1)], timeout=5)
    assert len(replies) == 1
    assert isinstance(grid, Grid)
