import logging
from time import monotonic

import pytest

from strategies.roster import Roster, TooFewClients
from tests.strategies.grid import InProcessGrid, names_itself, silent

pytestmark = pytest.mark.usefixtures("flower_identity")


def federation(*claims: object) -> tuple[InProcessGrid, list[int]]:
    """A grid of nodes that claim these ids (or are clients themselves), and its node ids."""
    grid = InProcessGrid([names_itself(c) if isinstance(c, int) else c for c in claims])
    return grid, list(grid.nodes)


def called(grid: InProcessGrid, n_clients: int, n_needed: int, timeout: float = 0.3) -> Roster:
    roster = Roster(n_clients)
    roster.call(grid, n_needed, timeout)
    return roster


NEVER = 10**9


def test_the_run_starts_with_k_of_n():
    grid, nodes = federation(0, silent, 2, 3)
    roster = called(grid, 4, 3)
    assert roster.nodes == {0: nodes[0], 2: nodes[2], 3: nodes[3]}
    assert roster.why_absent(1) == "not connected"


def test_fewer_than_k_do_not_start_it():
    grid, _ = federation(0, 2, silent, silent)
    with pytest.raises(TooFewClients, match=r"needs 3 of clients 0..3.*found 2.*: \[1, 3\]"):
        called(grid, 4, 3)


def test_all_are_waited_for_before_it_starts_with_fewer():
    grid, nodes = federation(0, 1, 2)
    grid.joins = {nodes[2]: 4}
    assert len(called(grid, 3, 1, timeout=10).nodes) == 3


def test_when_all_are_there_nobody_waits():
    grid, _ = federation(0, 1, 2)
    started = monotonic()
    roster = called(grid, 3, 3, timeout=30)
    roster.refresh(grid, 3, 30)
    assert monotonic() - started < 2


def test_a_late_site_is_found_when_it_comes():
    grid, nodes = federation(0, 1, 2)
    grid.joins = {nodes[2]: NEVER}
    roster = called(grid, 3, 2)
    assert 2 not in roster.nodes
    roster.refresh(grid, 2, 5)
    assert 2 not in roster.nodes
    grid.joins = {}
    roster.refresh(grid, 2, 5)
    assert roster.nodes == dict(enumerate(nodes))


def test_a_late_site_that_is_slow_to_say_who_it_is_holds_up_nobody():
    grid, nodes = federation(0, 1, 2)
    grid.joins, grid.delays = {nodes[2]: NEVER}, {nodes[2]: 3}
    roster = called(grid, 3, 2)
    grid.joins = {}
    started, found = monotonic(), []
    for _ in range(6):
        roster.refresh(grid, 2, 5)
        found.append(2 in roster.nodes)
    assert monotonic() - started < 1
    assert found == sorted(found) and found[0] is False and found[-1] is True
    assert [kind for node, kind in grid.asked if node == nodes[2]] == ["query"]


def test_a_site_that_comes_back_under_another_node_id_is_believed():
    grid, nodes = federation(0, 1, 1)
    grid.joins = {nodes[2]: NEVER}
    roster = called(grid, 2, 2)
    grid.joins = {nodes[1]: NEVER}
    roster.refresh(grid, 2, 5)
    assert roster.nodes == {0: nodes[0], 1: nodes[2]}


def test_a_site_that_left_is_absent():
    grid, nodes = federation(0, 1)
    roster = called(grid, 2, 2)
    grid.joins = {nodes[1]: NEVER}
    roster.refresh(grid, 1, 5)
    assert roster.nodes == {0: nodes[0]} and roster.why_absent(1) == "not connected"


def test_a_round_waits_for_its_quorum_and_then_does_with_fewer():
    grid, nodes = federation(0, 1, 2)
    roster = called(grid, 3, 3)
    grid.joins = {nodes[1]: 3, nodes[2]: NEVER}
    roster.refresh(grid, 2, 10)
    assert set(roster.nodes) == {0, 1}
    grid.joins = {nodes[1]: NEVER, nodes[2]: NEVER}
    started = monotonic()
    roster.refresh(grid, 2, 0.3)
    assert set(roster.nodes) == {0} and 0.3 <= monotonic() - started < 2


def test_of_two_sites_with_one_key_none_is_believed_at_the_start():
    grid, nodes = federation(0, 1, 1)
    roster = called(grid, 2, 1)
    assert roster.nodes == {0: nodes[0]}
    assert roster.why_absent(1) == "claimed by 2 nodes, none believed"
    roster.refresh(grid, 1, 5)
    assert roster.nodes == {0: nodes[0]}


def test_who_takes_part_is_not_driven_out_by_a_second_with_its_key(caplog):
    grid, nodes = federation(0, 1, 1)
    grid.joins = {nodes[2]: NEVER}
    roster = called(grid, 2, 2)
    grid.joins = {}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            roster.refresh(grid, 2, 5)
    assert roster.nodes == {0: nodes[0], 1: nodes[1]}
    assert caplog.messages == [
        f"node {nodes[2]} claims client 1, which another node holds: not believed"
    ]
    grid.joins = {nodes[1]: NEVER}
    roster.refresh(grid, 2, 5)
    assert roster.nodes == {0: nodes[0], 1: nodes[2]}, "the first is gone: the second may take over"
