"""Sites that replay, lag, vanish, come back and lie: a whole federation on a grid of functions.

Malformed replies are in test_robust.py and test_records.py; here are faults of time and identity.
"""

from collections.abc import Callable
from datetime import timedelta
from time import monotonic, time

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedface.aggregation import Mean
from strategies.records import Ticket
from strategies.robust import RobustStrategy
from strategies.rounds import RoundRecord
from tests.strategies.grid import Client, InProcessGrid, examples_of, site
from tests.strategies.test_robust import LAYOUT, assert_weights, mean_step, start_weights

pytestmark = pytest.mark.usefixtures("flower_identity")

N = 4
NEVER = 10**9


def federation(**options: object) -> RobustStrategy:
    settings = {"timeout": 0.3, "join_timeout": 0.3, "min_clients": 2, **options}
    return RobustStrategy(Mean(), LAYOUT, {}, seed=0, n_clients=N, **settings)


def rounds(
    subject: RobustStrategy,
    grid: InProcessGrid,
    n_rounds: int,
    before: Callable[[int], None] = lambda server_round: None,
) -> tuple[dict[str, Tensor], list[RoundRecord]]:
    """The weights after some rounds, and what happened in each; ``before`` changes the world."""
    weights, records = start_weights(), []
    for server_round in range(1, n_rounds + 1):
        before(server_round)
        weights, record = subject.train_round(server_round, weights, grid)
        records.append(record)
    return weights, records


def expected(cohorts: list[list[int]]) -> dict[str, Tensor]:
    """The oracle: after each round the mean of these clients' updates is added."""
    weights = start_weights()
    for server_round, clients in enumerate(cohorts, 1):
        weights = mean_step(weights, clients, server_round) if clients else weights
    return weights


def grid_with(client: int, behaviour: Callable[[Client], Client]) -> InProcessGrid:
    """Honest sites, one of them behaving otherwise."""
    sites = [site(i) for i in range(N)]
    sites[client] = behaviour(sites[client])
    return InProcessGrid(sites)


def asks_to_train(message: Message) -> bool:
    return message.metadata.message_type == "train"


# ---- replays


def replaying(honest: Client) -> Client:
    """Answers every round with the very message that it sent in the first."""
    first: list[Message] = []

    def client(message: Message) -> Message | None:
        reply = honest(message)
        if not asks_to_train(message) or reply is None:
            return reply
        first.append(reply)
        return first[0]

    return client


class Redirected(InProcessGrid):
    """A transport that files every reply under the message that was sent last to its node."""

    def pull_messages(self, message_ids: object) -> list[Message]:
        wanted = list(message_ids)  # type: ignore[call-overload]
        arrived = []
        for message_id in wanted:
            if message_id in self._mailbox:
                _, reply = self._mailbox.pop(message_id)
                reply.metadata.__dict__["_reply_to_message_id"] = message_id
                arrived.append(reply)
        return arrived


def test_a_reply_of_an_older_round_is_refused_even_under_the_new_messages_id():
    sites = [site(i) for i in range(N)]
    sites[1] = replaying(sites[1])
    weights, records = rounds(federation(), Redirected(sites), 3)
    assert records[0].rejected == {}
    for record in records[1:]:
        assert record.rejected == {
            1: f"reply needs to answer this message of round {record.server_round}, got one to an "
            "earlier message (round 1): a replay"
        }
    assert_weights(weights, expected([[0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]))


def test_a_replayed_message_that_names_its_own_question_is_never_looked_at():
    weights, records = rounds(federation(), grid_with(1, replaying), 2)
    assert records[1].rejected == {1: "no reply in time"}
    assert_weights(weights, expected([[0, 1, 2, 3], [0, 2, 3]]))


def test_a_reply_to_an_earlier_attempt_at_the_same_round_is_refused():
    """The server was killed in round 1 and does it again; an old reply comes in."""
    sites = [site(i) for i in range(N)]
    sites[1] = replaying(sites[1])
    grid = Redirected(sites)
    rounds(federation(), grid, 1)
    weights, (record,) = rounds(federation(), grid, 1)
    assert record.rejected[1].endswith("got one to an earlier message (round 1): a replay")
    assert_weights(weights, expected([[0, 2, 3]]))


def test_tickets_are_drawn_anew_for_every_exchange():
    tickets = {Ticket.of_round(3) for _ in range(100)}
    assert len(tickets) == 100 and all(t.group_id.startswith("3.") for t in tickets)


def test_a_replayed_evaluation_does_not_count():
    subject, grid = federation(), InProcessGrid([site(i) for i in range(N)])
    _, _ = rounds(subject, grid, 1)
    replies = []
    for server_round in (1, 2):
        messages = subject.configure_evaluate(server_round, *no_arrays(), grid)
        replies.append(list(grid.send_and_receive(messages)))
    assert subject.aggregate_evaluate(2, replies[0]) is None
    fresh = subject.aggregate_evaluate(2, replies[1])
    assert fresh is not None
    assert subject.aggregate_evaluate(2, [*replies[0][:2], *replies[1]]) == fresh


def no_arrays() -> tuple[object, object]:
    from flwr.app import ArrayRecord, ConfigRecord

    return ArrayRecord({}), ConfigRecord()


# ---- slow, gone, late, back again


def test_a_slow_loris_costs_its_rounds_the_deadline_and_no_more():
    """It answers the roll call, then lets the server wait."""
    grid = InProcessGrid([site(i) for i in range(N)])
    subject = federation()
    rounds(subject, grid, 1)
    grid.delays = {list(grid.nodes)[2]: NEVER}
    started = monotonic()
    weights, records = rounds(subject, grid, 2)
    assert 0.6 <= monotonic() - started < 3
    assert [record.rejected for record in records] == [{2: "no reply in time"}] * 2
    assert_weights(weights, expected([[0, 1, 3]] * 2))


def test_a_site_that_dies_in_the_middle_of_a_round_costs_that_round_one_reply():
    """Flower says so with an error reply; from then on the node is gone, then back."""
    grid = InProcessGrid([site(i) for i in range(N)])
    node = list(grid.nodes)[1]
    healthy = grid.nodes[node]

    def dying(message: Message) -> Message | None:
        if asks_to_train(message):
            grid.joins = {node: NEVER}
            raise ConnectionError("node unavailable")
        return healthy(message)

    def world(server_round: int) -> None:
        grid.nodes[node] = dying if server_round == 2 else healthy
        if server_round == 4:
            grid.joins = {}

    weights, records = rounds(federation(), grid, 4, world)
    assert [record.rejected for record in records] == [
        {},
        {1: "client failed: ConnectionError('node unavailable')"},
        {1: "not connected"},
        {},
    ]
    everybody, rest = [0, 1, 2, 3], [0, 2, 3]
    assert_weights(weights, expected([everybody, rest, rest, everybody]))


def test_a_site_that_joins_late_takes_part_from_then_on():
    grid = InProcessGrid([site(i) for i in range(N)])
    late = list(grid.nodes)[3]
    grid.joins = {late: NEVER}

    def world(server_round: int) -> None:
        if server_round == 3:
            grid.joins = {}

    weights, records = rounds(federation(), grid, 3, world)
    assert [record.rejected for record in records] == [{3: "not connected"}] * 2 + [{}]
    assert_weights(weights, expected([[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]))


def test_a_site_that_rejoins_under_another_node_id_takes_part_again():
    grid = InProcessGrid([*(site(i) for i in range(N)), site(1)])
    old, new = list(grid.nodes)[1], list(grid.nodes)[4]
    grid.joins = {new: NEVER}

    def world(server_round: int) -> None:
        if server_round == 2:
            grid.joins = {old: NEVER, new: NEVER}
        if server_round == 3:
            grid.joins = {old: NEVER}

    weights, records = rounds(federation(), grid, 3, world)
    assert [record.rejected for record in records] == [{}, {1: "not connected"}, {}]
    assert_weights(weights, expected([[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]]))


def test_two_sites_with_one_key_are_both_left_out_and_named():
    grid = InProcessGrid([*(site(i) for i in range(N)), site(1)])
    weights, (record,) = rounds(federation(), grid, 1)
    assert record.rejected == {1: "claimed by 2 nodes, none believed"}
    assert_weights(weights, expected([[0, 2, 3]]))


def test_a_second_site_with_a_key_in_use_is_not_even_asked():
    grid = InProcessGrid([*(site(i) for i in range(N)), site(1)])
    second = list(grid.nodes)[4]
    grid.joins = {second: NEVER}

    def world(server_round: int) -> None:
        if server_round == 2:
            grid.joins = {}

    weights, records = rounds(federation(), grid, 3, world)
    assert [record.rejected for record in records] == [{}] * 3
    assert (second, "train") not in grid.asked
    assert_weights(weights, expected([[0, 1, 2, 3]] * 3))


def test_when_everybody_is_gone_the_model_stays_and_the_round_says_so():
    grid = InProcessGrid([site(i) for i in range(N)])

    def world(server_round: int) -> None:
        grid.joins = dict.fromkeys(grid.nodes, NEVER) if server_round == 2 else {}

    weights, records = rounds(federation(), grid, 3, world)
    assert records[1].kept_global == "needed 2 valid replies, got 0"
    assert records[1].rejected == dict.fromkeys(range(N), "not connected")
    assert_weights(weights, expected([[0, 1, 2, 3], [], [0, 1, 2, 3]]))


def test_who_is_sampled_does_not_depend_on_who_is_connected():
    cohorts = []
    for gone in (False, True):
        grid = InProcessGrid([site(i) for i in range(N)])
        grid.joins = {next(iter(grid.nodes)): NEVER} if gone else {}
        subject = federation(n_sampled=2, min_valid_replies=1)
        _, records = rounds(subject, grid, 6)
        cohorts.append([{*r.rejected, *(c.client for c in r.clients)} for r in records])
    assert cohorts[0] == cohorts[1] and any(0 in cohort for cohort in cohorts[0])


# ---- clocks


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(hours=13), timedelta(days=400)])
def test_a_sites_wrong_clock_changes_nothing(skew: timedelta):
    """What a reply says about time is not looked at; deadlines are the server's own."""

    def skewed(honest: Client) -> Client:
        def client(message: Message) -> Message | None:
            reply = honest(message)
            if reply is not None:
                reply.metadata.__dict__["_created_at"] = time() + skew.total_seconds()
                reply.metadata.__dict__["_ttl"] = -1.0
            return reply

        return client

    weights, records = rounds(federation(), grid_with(1, skewed), 2)
    assert [record.rejected for record in records] == [{}, {}]
    assert_weights(weights, expected([[0, 1, 2, 3]] * 2))


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_the_servers_own_clock_may_jump(jump: float, monkeypatch: pytest.MonkeyPatch):
    grid = InProcessGrid([site(i) for i in range(N)])
    started, real = monotonic(), time
    grid.delays = {list(grid.nodes)[2]: 2}
    monkeypatch.setattr("time.time", lambda: real() + jump)
    weights, records = rounds(federation(timeout=5.0), grid, 2)
    assert monotonic() - started < 5
    assert [record.rejected for record in records] == [{}, {}]
    assert_weights(weights, expected([[0, 1, 2, 3]] * 2))


# ---- claims


@pytest.mark.parametrize("claim", [10**7, 10**4])
def test_with_a_cap_a_lie_about_the_count_moves_the_model_little(claim: int):
    """Ten million images are within the limits of a reply; the aggregator's cap bounds them."""

    def lying(honest: Client) -> Client:
        def client(message: Message) -> Message | None:
            reply = honest(message)
            if asks_to_train(message) and reply is not None:
                reply.content["metrics"]["num-examples"] = claim
            return reply

        return client

    shares = {}
    for name, rule in (("plain", Mean()), ("capped", Mean(max_weight_ratio=4.0))):
        subject = federation()
        subject.aggregator = rule
        _, (record,) = rounds(subject, grid_with(0, lying), 1)
        shares[name] = next(c.trust for c in record.clients if c.client == 0)
    assert shares["plain"] > 0.98, "plain averaging believes it"
    counts = sorted([claim, *(examples_of(i) for i in range(1, N))])
    median = (counts[1] + counts[2]) / 2
    assert shares["capped"] == pytest.approx(4 * median / (4 * median + 20 + 30 + 40))


def test_an_aggregator_that_breaks_down_keeps_the_model_and_says_why():
    """Numbers at the edge of float32 make some linear algebra give up."""

    class Broken(Mean):
        name: str = "broken"  # type: ignore[assignment]

        def __call__(self, cohort: object, state: object) -> object:
            raise torch.linalg.LinAlgError("eigh: the algorithm failed to converge")

    subject = federation()
    subject.aggregator = Broken()
    weights, (record,) = rounds(subject, grid_with(0, lambda honest: honest), 1)
    assert record.kept_global == "aggregator refused: eigh: the algorithm failed to converge"
    assert_weights(weights, start_weights())


def test_a_huge_error_text_stays_short():
    def shouting(honest: Client) -> Client:
        def client(message: Message) -> Message | None:
            if asks_to_train(message):
                raise RuntimeError("\x1b[2J" + "x" * 10**6)
            return honest(message)

        return client

    _, (record,) = rounds(federation(), grid_with(2, shouting), 1)
    assert len(record.rejected[2]) < 400 and record.rejected[2].isprintable()


def test_a_reply_with_thousands_of_records_is_refused_in_a_line():
    def flooding(honest: Client) -> Client:
        def client(message: Message) -> Message | None:
            reply = honest(message)
            if asks_to_train(message) and reply is not None:
                for i in range(5000):
                    reply.content[f"record {i}"] = RecordDict().metric_records.get(
                        "none", reply.content["metrics"]
                    )
            return reply

        return client

    _, (record,) = rounds(federation(), grid_with(2, flooding), 1)
    assert record.rejected[2].startswith("reply has unknown records ")
    assert len(record.rejected[2]) < 200
