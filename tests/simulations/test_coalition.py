"""Headquarters between a server and sites that are plain functions; whole runs at the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from clients.malicious import NOTES, ORDERS
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.attacks.attack import Attack, Coalition, Headquarters, Memory
from fedface.report.run_folder import RunFolder
from simulations import app
from simulations.build import RunData
from simulations.coalition import Colluders, split_state
from simulations.execution import run
from simulations.server import Server
from strategies.records import to_record, to_tensors
from strategies.robust import Adversary, RobustStrategy
from strategies.rounds import RoundRecord
from tests.simulations.test_execution import Stopped, facts, lasting, stopping
from tests.simulations.test_server import server_of
from tests.simulations.tiny import N_CLIENTS, tiny_config
from tests.strategies.grid import InProcessGrid, Tamper, drawn_update, site

pytestmark = pytest.mark.usefixtures("flower_identity")

MALICIOUS_SHARE = 0.5
SEED = 0
log: list[Any] = []
"""What the attacks below were asked, in order; empty at the start of each test."""


@pytest.fixture(autouse=True)
def empty_log() -> Iterator[None]:
    log.clear()
    yield
    log.clear()


class Planning(Attack):
    """Remembers the rounds and looks at what it is told."""

    def plan(self, headquarters: Headquarters, memory: Memory) -> Memory:
        log.append(headquarters)
        rounds = memory.get("rounds", torch.zeros(0))
        new = torch.tensor([float(headquarters.server_round)])
        return {**memory, "rounds": torch.cat([rounds, new])}

    def collude(self, coalition: Coalition) -> Tensor:
        log.append(coalition)
        return self.crafted(coalition)

    def crafted(self, coalition: Coalition) -> Tensor:
        return coalition.updates


class Naming(Planning):
    """Each colluder sends its own client id in every weight."""

    def crafted(self, coalition: Coalition) -> Tensor:
        ids = torch.tensor(coalition.clients, dtype=torch.float64)
        return ids[:, None].expand(-1, coalition.updates.shape[1])


class Broken(Planning):
    """Sends NaN and infinity."""

    def crafted(self, coalition: Coalition) -> Tensor:
        crafted = coalition.updates.clone()
        crafted[0, 0], crafted[-1, -1] = torch.nan, torch.inf
        return crafted


class Asking(Planning):
    """Asks the server's rule what it would make of zeros, and then sends what it trained."""

    def crafted(self, coalition: Coalition) -> Tensor:
        log.append(coalition.judge(torch.zeros_like(coalition.updates)))
        return coalition.updates


class Counting(Aggregator):
    """The mean, which counts in its state how often it was applied."""

    name: str = "counting"

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        n = len(cohort.updates)
        trust = torch.full((n,), 1 / n, dtype=torch.float64)
        count = state.get("count", torch.zeros(())) + 1
        return Aggregation(cohort.updates.mean(dim=0), trust, count.repeat(n)), {"count": count}


@dataclass
class Spy:
    """Hands everything on, and keeps the replies as the server gets them."""

    inner: Adversary
    replies: list[dict[int, Message]] = field(default_factory=list)

    def brief(self, server_round: int, messages: dict[int, Message]) -> dict[int, Message]:
        return self.inner.brief(server_round, messages)

    def tamper(self, server_round: int, replies: dict[int, Message]) -> dict[int, Message]:
        self.replies.append(self.inner.tamper(server_round, replies))
        return self.replies[-1]


@dataclass
class Scene:
    """A run's headquarters, its server and sites that send ``drawn_update``.

    Attributes:
        got: (client, round) -> the records of the train message that it got.
    """

    colluders: Colluders
    spy: Spy
    strategy: RobustStrategy
    weights: dict[str, Tensor]
    grid: InProcessGrid
    got: dict[tuple[int, int], RecordDict]

    def round(self, server_round: int) -> RoundRecord:
        self.weights, record = self.strategy.train_round(
            server_round, self.weights, self.grid, adversary=self.spy
        )
        return record

    def honest(self, client: int, server_round: int) -> Tensor:
        """The ``(dim,)`` update that ``client`` has trained."""
        layout = self.strategy.layout
        return layout.flatten(drawn_update(client, server_round, self.weights))

    def sent(self, client: int) -> Tensor:
        """The ``(dim,)`` update that the server got from ``client`` in the last round."""
        record = self.spy.replies[-1][client].content.array_records["arrays"]
        return self.strategy.layout.flatten(to_tensors(record))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("coalition")
    return server_of(tiny_config(folder, attack={"malicious_share": MALICIOUS_SHARE}))


Make = Callable[..., Scene]


@pytest.fixture
def scene(server: Server) -> Make:
    """``scene(attack, {client: what it replies instead}, aggregator)``."""

    def make(
        attack: Attack,
        tampers: dict[int, Tamper] | None = None,
        aggregator: Aggregator | None = None,
    ) -> Scene:
        old, got = server.strategy, {}
        strategy = RobustStrategy(
            aggregator or server.config.aggregator,
            old.layout,
            old.buffers,
            seed=SEED,
            n_clients=N_CLIENTS,
            model=old.model,
        )

        def tamper_of(client: int) -> Tamper:
            def tamper(message: Message, content: RecordDict) -> RecordDict | Error | None:
                server_round = int(message.metadata.group_id.partition(".")[0])
                got[client, server_round] = message.content
                change = (tampers or {}).get(client)
                return content if change is None else change(message, content)

            return tamper

        sites = [site(client, tamper_of(client)) for client in range(N_CLIENTS)]
        colluders = Colluders(
            server.config,
            attack,
            server.data,
            strategy,
            torch.device("cpu"),  # type: ignore[arg-type]
        )
        grid = InProcessGrid(sites, seed=3)
        last = N_CLIENTS - 1  # replies arrive in descending order of client
        grid.delays = {node: last - client for client, node in enumerate(grid.nodes)}
        return Scene(colluders, Spy(colluders), strategy, dict(server.weights), grid, got)

    return make


def attack(kind: type[Attack] = Planning, **fields: Any) -> Any:
    return kind(malicious_share=MALICIOUS_SHARE, **fields)


@pytest.fixture(scope="module")
def two(server: Server) -> tuple[int, int]:
    """The two malicious sites of four."""
    first, second = Colluders(
        server.config, attack(), server.data, server.strategy, torch.device("cpu")
    ).malicious
    return first, second


# ---- orders


def test_what_was_planned_reaches_the_malicious_sites_alone(
    scene: Make, two: tuple[int, int]
) -> None:
    subject = scene(attack())
    for server_round in (1, 2):
        subject.round(server_round)
        for client in range(N_CLIENTS):
            content = subject.got[client, server_round]
            assert set(content) - {ORDERS} == {"arrays", "buffers", "config"}
            assert (ORDERS in content) == (client in two)
        for client in two:
            orders = to_tensors(subject.got[client, server_round].array_records[ORDERS])
            assert orders["rounds"].tolist() == [1.0, 2.0][:server_round]


def test_without_a_plan_no_message_looks_different(scene: Make) -> None:
    subject = scene(attack(Attack))
    subject.round(1)
    assert all(set(c) == {"arrays", "buffers", "config"} for c in subject.got.values())
    assert subject.colluders.saved() == {}


def test_headquarters_knows_the_colluders_people_and_the_global_model_alone(
    scene: Make, server: Server, two: tuple[int, int]
) -> None:
    subject = scene(attack())
    before = subject.strategy.layout.flatten(subject.weights)
    subject.round(1)
    told = log[0]
    data: RunData = server.data
    own = [data.parts[client] for client in two]
    assert len(told.images) == sum(map(len, own))
    assert set(told.labels) == {i for part in own for i in data.train.identities[part].tolist()}
    others = [data.parts[c] for c in range(N_CLIENTS) if c not in two]
    assert not set(told.labels) & {i for p in others for i in data.train.identities[p].tolist()}
    assert (told.n_malicious, told.n_clients, told.server_round, told.seed) == (2, N_CLIENTS, 1, 0)
    assert torch.equal(told.model.weights, before)


# ---- notes and updates


def noting(note: Callable[[int], Tensor], client: int, name: str = "mine") -> Tamper:
    """A site that also writes to headquarters."""

    def tamper(message: Message, content: RecordDict) -> RecordDict:
        content[NOTES] = ArrayRecord({name: Array(note(client).numpy())})
        return content

    return tamper


def test_notes_reach_the_coalition_and_never_the_server(scene: Make, two: tuple[int, int]) -> None:
    notes = {c: noting(lambda client: torch.tensor([client, client + 10]), c) for c in two}
    subject = scene(attack(), notes)
    record = subject.round(1)
    coalition = log[-1]
    assert coalition.notes["mine"].tolist() == [[c, c + 10] for c in two]
    assert coalition.memory["rounds"].tolist() == [1.0]
    assert record.rejected == {} and len(record.clients) == N_CLIENTS
    for reply in subject.spy.replies[0].values():
        assert set(reply.content) - {"buffers"} == {"arrays", "metrics"}


def test_notes_that_not_every_colluder_wrote_are_left_out(
    scene: Make, two: tuple[int, int]
) -> None:
    subject = scene(attack(), {two[0]: noting(lambda client: torch.ones(1), two[0])})
    assert subject.round(1).rejected == {}
    assert log[-1].notes == {}


def test_a_coalition_sees_whose_update_is_whose(scene: Make, two: tuple[int, int]) -> None:
    subject = scene(attack())
    subject.round(1)
    coalition = log[-1]
    assert coalition.clients == two and coalition.rows.tolist() == list(two)
    others = [c for c in range(N_CLIENTS) if c not in two]
    for found, clients in ((coalition.updates, two), (coalition.others, others)):
        assert torch.equal(found, torch.stack([subject.honest(c, 1) for c in clients]))
    assert (coalition.n_clients, coalition.n_malicious) == (N_CLIENTS, 2)


def test_what_was_crafted_lands_at_its_client_and_nowhere_else(
    scene: Make, two: tuple[int, int]
) -> None:
    """Whatever the order of arrival; metrics and statistics stay as they were."""
    subject, plain = scene(attack(Naming)), scene(attack())
    subject.round(1)
    plain.round(1)
    for client in range(N_CLIENTS):
        wanted = subject.honest(client, 1)
        wanted = torch.full_like(wanted, client) if client in two else wanted
        assert torch.equal(subject.sent(client), wanted)
        left = subject.spy.replies[0][client].content
        right = plain.spy.replies[0][client].content
        assert dict(left["metrics"]) == dict(right["metrics"])
        assert set(left) == set(right)
    moved = torch.stack([subject.sent(client) for client in range(N_CLIENTS)])
    share = torch.tensor([10.0, 20.0, 30.0, 40.0]) / 100  # the images they claim
    layout = subject.strategy.layout
    start = layout.flatten(server_weights(subject))
    torch.testing.assert_close(
        layout.flatten(subject.weights), start + share @ moved, rtol=1e-5, atol=1e-5
    )


def server_weights(subject: Scene) -> dict[str, Tensor]:
    """The global weights that the last round began with."""
    return dict(subject.colluders.weights)


# ---- what can go wrong


def wrong_shape(message: Message, content: RecordDict) -> RecordDict:
    named = to_tensors(content.array_records["arrays"])
    first = next(iter(named))
    content["arrays"] = to_record({**named, first: torch.zeros(1)})
    return content


def raising(message: Message, content: RecordDict) -> Error:
    return Error(2, "the disk is full")


def silent(message: Message, content: RecordDict) -> None:
    return None


def no_arrays(message: Message, content: RecordDict) -> RecordDict:
    del content["arrays"]
    return content


@pytest.mark.parametrize("fault", [wrong_shape, raising, silent, no_arrays])
def test_a_colluder_who_cannot_be_read_is_left_out(
    fault: Tamper, scene: Make, two: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = scene(attack(Naming), {two[0]: fault})
    subject.strategy.timeout = 0.5
    record = subject.round(1)
    assert log[-1].clients == two[1:] and len(log[-1].updates) == 1
    assert list(record.rejected) == [two[0]] and record.kept_global is None
    assert torch.equal(subject.sent(two[1]), torch.full_like(subject.sent(two[1]), two[1]))
    # Its row is that of the cohort of those who can be read.
    present = [c for c in range(N_CLIENTS) if c != two[0]]
    assert [present[row] for row in log[-1].rows] == [two[1]]


def test_an_honest_site_that_cannot_be_read_is_in_nobodys_view(
    scene: Make, two: tuple[int, int]
) -> None:
    honest = [c for c in range(N_CLIENTS) if c not in two]
    subject = scene(attack(Naming), {honest[0]: wrong_shape})
    record = subject.round(1)
    assert list(record.rejected) == [honest[0]]
    assert log[-1].clients == two
    assert torch.equal(log[-1].others, subject.honest(honest[1], 1)[None])
    assert [torch.unique(subject.sent(c)).tolist() for c in two] == [[c] for c in two]


def test_without_a_readable_colluder_nobody_colludes(scene: Make, two: tuple[int, int]) -> None:
    subject = scene(attack(Naming), dict.fromkeys(two, wrong_shape))
    record = subject.round(1)
    assert [type(asked) for asked in log] == [Headquarters]
    assert set(record.rejected) == set(two)


def test_nonsense_from_the_attack_drops_replies_and_ends_no_run(
    scene: Make, two: tuple[int, int]
) -> None:
    subject = scene(attack(Broken))
    for server_round in (1, 2):
        record = subject.round(server_round)
        assert set(record.rejected) == set(two) and record.kept_global is None
        assert all("needs finite values" in why for why in record.rejected.values())
        assert all(bool(value.isfinite().all()) for value in subject.weights.values())
    assert [client.client for client in record.clients] == [
        c for c in range(N_CLIENTS) if c not in two
    ]


# ---- rounds without attack


def test_in_rounds_without_attack_nothing_happens(scene: Make, two: tuple[int, int]) -> None:
    schedule = {"name": "every_round", "start": 2, "stop": 2}
    subject = scene(attack(Naming, schedule=schedule))
    for server_round in (1, 2, 3):
        subject.round(server_round)
        attacked = server_round == 2
        assert len(log) == (0, 2, 2)[server_round - 1]
        for client in two:
            assert (ORDERS in subject.got[client, server_round]) == attacked
            same = torch.equal(subject.sent(client), subject.honest(client, server_round))
            assert same != attacked
    assert subject.colluders.memory["rounds"].tolist() == [2.0]


# ---- the server's rule


def test_the_rule_that_is_asked_is_the_servers_and_remembers_nothing_of_it(
    scene: Make, two: tuple[int, int]
) -> None:
    subject = scene(attack(Asking), aggregator=Counting())
    for server_round in (1, 2):
        record = subject.round(server_round)
        judged: Aggregation = log[-1]
        others = [c for c in range(N_CLIENTS) if c not in two]
        honest = sum(subject.honest(c, server_round) for c in others)
        torch.testing.assert_close(judged.update, honest / N_CLIENTS)  # zeros from the two
        # Asked with the state of the round before; the question itself does not count.
        assert judged.scores is not None and judged.scores.tolist() == [server_round] * N_CLIENTS
        assert [c.score for c in record.clients] == [server_round] * N_CLIENTS
        assert all(torch.equal(subject.sent(c), subject.honest(c, server_round)) for c in two)
    assert subject.strategy.state["count"] == 2


# ---- memory from round to round and from process to process


def test_memory_and_the_rules_state_share_a_checkpoint_and_part_again(scene: Make) -> None:
    subject = scene(attack(), aggregator=Counting())
    subject.round(1)
    saved = subject.colluders.saved()
    assert not set(saved) & set(subject.strategy.state)
    own, memory = split_state({**subject.strategy.state, **saved})
    assert own == subject.strategy.state
    assert set(memory) == {"rounds"} and torch.equal(memory["rounds"], saved["attack/rounds"])


def test_memory_named_like_the_rules_state_or_the_prefix_itself_is_kept_apart() -> None:
    state = {"count": torch.zeros(1), "attacker": torch.zeros(1)}
    memory = {"count": torch.ones(1), "attack/count": torch.ones(2), "a/b": torch.ones(3)}
    own, kept = split_state({**state, **{f"attack/{n}": value for n, value in memory.items()}})
    assert own == state
    assert kept == memory


FREE_RIDER = {
    "attack": {"name": "free_rider", "malicious_share": 0.5, "sends": "replay"},
    "federation": {"n_rounds": 4},
    "aggregator": {"name": "ariba"},
    "engine": {"name": "in_process"},
}


def test_a_killed_run_goes_on_with_what_the_colluders_remembered(tmp_path: Path) -> None:
    """Free riders replay the last change of the global model, which they have to remember."""
    whole, broken = (tiny_config(tmp_path / name, **FREE_RIDER) for name in "ab")
    app._worker.cache_clear()
    run(whole, Console(quiet=True))
    with stopping(RunFolder, "save", 2, False), pytest.raises(Stopped):
        run(broken, Console(quiet=True))
    app._worker.cache_clear()
    (state,) = (broken.folder / "checkpoints").glob("state-round-000002*")
    kept = {n for n in load_file(state) if n.startswith("attack/")}
    assert kept == {"attack/free_rider/weights", "attack/free_rider/change"}
    run(broken, Console(quiet=True), resume=True)
    assert lasting(broken.folder) == lasting(whole.folder)
    assert facts(broken.folder) == facts(whole.folder)
