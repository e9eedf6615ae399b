from collections import Counter
from time import monotonic

import pytest
from flwr.app import Message, MessageType, MetricRecord, RecordDict

from strategies.cohorts import TooFewClients, exchange, roll_call, sample_cohort
from tests.strategies.grid import InProcessGrid, failing, names_itself, silent

pytestmark = pytest.mark.usefixtures("flower_identity")


def federation(*claims: object, seed: int = 0) -> tuple[InProcessGrid, list[int]]:
    """A grid of nodes that claim these ids (or are clients themselves), and its node ids."""
    clients = [names_itself(c) if isinstance(c, int) else c for c in claims]
    grid = InProcessGrid(clients, seed)
    return grid, list(grid.nodes)


def ask(*nodes: int) -> dict[int, Message]:
    return {i: Message(RecordDict(), node, MessageType.QUERY) for i, node in enumerate(nodes)}


def claimed(reply: Message) -> int:
    return int(reply.content.metric_records["metrics"]["partition-id"])


# ---- exchange


@pytest.mark.parametrize("seed", range(3))
def test_each_reply_belongs_to_the_client_that_was_asked(seed):
    grid, nodes = federation(*range(10, 16), seed=seed)
    heard = []
    replies = exchange(grid, ask(*nodes), 5, lambda client, reply: heard.append((client, reply)))
    assert {client: claimed(reply) for client, reply in replies.items()} == {
        i: 10 + i for i in range(6)
    }
    assert sorted(client for client, _ in heard) == list(range(6))
    assert all(replies[client] is reply for client, reply in heard)


def test_a_silent_client_is_absent_after_the_timeout():
    grid, nodes = federation(0, silent, 2)
    started = monotonic()
    replies = exchange(grid, ask(*nodes), timeout=0.3)
    assert set(replies) == {0, 2}
    assert 0.3 <= monotonic() - started < 2


def test_a_slow_reply_is_waited_for_and_a_late_one_is_not():
    grid, nodes = federation(0, 1)
    grid.delays = {nodes[0]: 3, nodes[1]: 10**9}
    assert set(exchange(grid, ask(*nodes), timeout=0.4, poll_seconds=0.01)) == {0}


def test_when_all_have_answered_nobody_waits():
    grid, nodes = federation(0, failing, 2)
    started = monotonic()
    replies = exchange(grid, ask(*nodes), timeout=30)
    assert replies[1].has_error() and not replies[0].has_error()
    assert monotonic() - started < 2


def test_nodes_that_are_gone_are_absent_and_the_others_are_heard():
    grid, nodes = federation(0, 1, 2, 3)
    grid.gone = {nodes[0], nodes[3]}
    started = monotonic()
    assert set(exchange(grid, ask(*nodes), timeout=30)) == {1, 2}
    assert monotonic() - started < 2


def test_a_reply_that_comes_twice_counts_once():
    grid, nodes = federation(0, 1)
    grid.twice = True
    heard = []
    replies = exchange(grid, ask(*nodes), 5, lambda client, reply: heard.append(client))
    assert sorted(replies) == sorted(heard) == [0, 1]


def test_asking_nobody_takes_no_time():
    grid, _ = federation(0)
    assert exchange(grid, {}, timeout=30) == {}


# ---- roll call


@pytest.mark.parametrize("seed", range(3))
def test_every_client_is_found_whatever_its_node_id(seed):
    grid, nodes = federation(2, 0, 1, seed=seed)
    found = roll_call(grid, 3, timeout=5)
    assert list(found.items()) == [(0, nodes[1]), (1, nodes[2]), (2, nodes[0])]


def test_a_node_is_asked_once_also_while_it_thinks():
    grid, nodes = federation(2, 0, 1)
    grid.joins, grid.delays = {nodes[0]: 2}, {nodes[1]: 2}
    roll_call(grid, 3, timeout=5)
    assert sorted(grid.asked) == sorted((node, "query") for node in nodes)


def test_further_nodes_are_left_out():
    grid, nodes = federation(0, 1, 2, 7, -1, 2**40)
    assert roll_call(grid, 2, timeout=5) == {0: nodes[0], 1: nodes[1]}


def test_late_nodes_are_waited_for():
    grid, nodes = federation(0, 1, 2)
    grid.joins = {nodes[1]: 2, nodes[2]: 4}
    assert roll_call(grid, 3, timeout=10) == dict(enumerate(nodes))


def test_a_late_node_is_heard_although_another_node_stays_silent():
    grid, nodes = federation(0, 1, silent)
    grid.joins = {nodes[1]: 2}
    assert roll_call(grid, 2, timeout=0.6) == {0: nodes[0], 1: nodes[1]}


def test_a_missing_client_is_named():
    grid, _ = federation(0, 2, silent, failing)
    with pytest.raises(
        TooFewClients, match=r"clients 0..3.*0.3 s found 2.*claimed twice: \[1, 3\]"
    ):
        roll_call(grid, 4, timeout=0.3)


def test_of_two_nodes_that_claim_one_id_none_is_believed():
    grid, _ = federation(0, 1, 1)
    with pytest.raises(TooFewClients, match=r"found 1, missing or claimed twice: \[1\]"):
        roll_call(grid, 2, timeout=0.3)


def test_a_quick_liar_is_not_believed_before_the_honest_node_spoke():
    grid, nodes = federation(0, 1, 1)
    grid.delays = {nodes[1]: 3}
    with pytest.raises(TooFewClients, match=r"claimed twice: \[1\]"):
        roll_call(grid, 2, timeout=0.8)


def test_a_site_that_came_back_under_another_node_id_is_believed():
    """Its old node still answers the roll call's first question, then is gone."""
    grid, nodes = federation(0, 1, 1, 2)
    grid.joins = {nodes[3]: 4}
    looks = []

    def present(ask=grid.get_node_ids) -> list[int]:
        looks.append(None)
        return [node for node in ask() if node != nodes[1] or len(looks) < 3]

    grid.get_node_ids = present  # type: ignore[method-assign]
    assert roll_call(grid, 3, timeout=10) == {0: nodes[0], 1: nodes[2], 2: nodes[3]}


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"partition-id": 1.0},
        {"partition-id": [1]},
        {"partition": 1},
    ],
)
def test_a_node_that_says_no_number_is_not_believed(metrics):
    def odd(message: Message) -> Message:
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    grid, _ = federation(0, odd)
    with pytest.raises(TooFewClients, match=r"found 1.*\[1\]"):
        roll_call(grid, 2, timeout=0.2)


def test_a_node_may_fail_at_first():
    failures = [0, 0]

    def shaky(message: Message) -> Message:
        if failures:
            failures.pop()
            raise RuntimeError("not yet")
        return names_itself(1)(message)

    grid, nodes = federation(0, shaky)
    assert roll_call(grid, 2, timeout=10) == dict(enumerate(nodes))


# ---- sampling


@pytest.mark.parametrize("n_sampled", [None, 5])
def test_without_sampling_all_take_part_in_order(n_sampled):
    assert sample_cohort((3, 1, 4, 0, 2), n_sampled, seed=0, server_round=1) == (0, 1, 2, 3, 4)


def test_a_cohort_is_drawn_without_replacement_in_ascending_order():
    for server_round in range(1, 50):
        cohort = sample_cohort(range(10), 4, 0, server_round)
        assert len(set(cohort)) == 4 and set(cohort) <= set(range(10))
        assert list(cohort) == sorted(cohort)
        assert all(type(client) is int for client in cohort)


def test_a_cohort_depends_on_seed_and_round_not_on_the_order_of_clients():
    assert sample_cohort(range(20), 5, 3, 7) == sample_cohort(list(reversed(range(20))), 5, 3, 7)
    cohorts = {sample_cohort(range(20), 5, seed, r) for seed in range(3) for r in range(1, 11)}
    assert len(cohorts) > 25


def test_every_client_is_drawn_equally_often():
    """3 of 10 in 2000 rounds: 600 each with standard deviation 20.5; five of them is a failure."""
    counts = Counter(c for r in range(1, 2001) for c in sample_cohort(range(10), 3, 0, r))
    assert all(abs(counts[client] - 600) < 5 * 20.5 for client in range(10))


@pytest.mark.parametrize("n_sampled", [-1, 0, 4])
def test_an_impossible_cohort_is_refused(n_sampled):
    with pytest.raises(ValueError, match=rf"n_sampled in 1..3 clients, got {n_sampled}"):
        sample_cohort((0, 1, 2), n_sampled, 0, 1)
