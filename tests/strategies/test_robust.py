import re
import tracemalloc
from collections.abc import Callable
from math import inf, nan

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedface.aggregation import Aggregation, Aggregator, Cohort, Mean, State
from fedface.aggregation.on_device import chosen_device
from fedface.aggregation.screening import ReplyLimits
from fedface.parameters import Layout
from strategies.cohorts import TooFewClients
from strategies.records import to_record, to_tensors
from strategies.robust import RobustStrategy
from strategies.rounds import ClientRecord, RoundRecord
from tests.strategies.grid import (
    InProcessGrid,
    Tamper,
    drawn_update,
    examples_of,
    failing,
    names_itself,
    silent,
    site,
)

pytestmark = pytest.mark.usefixtures("flower_identity")

SHAPES = {"w": (4, 6), "b": (3,)}
LAYOUT = Layout.from_shapes(SHAPES)
BUFFERS = {"bn.running_mean": torch.tensor([0.5, -1.0]), "bn.num_batches_tracked": torch.tensor(4)}
BAD = 1
"""The client that misbehaves."""


def start_weights() -> dict[str, Tensor]:
    return {name: torch.full(shape, 0.25) for name, shape in SHAPES.items()}


def strategy(aggregator: Aggregator | None = None, **options: object) -> RobustStrategy:
    settings = {"seed": 0, "n_clients": 4, "timeout": 0.5, "buffers": {}, **options}
    buffers = settings.pop("buffers")
    return RobustStrategy(aggregator or Mean(), LAYOUT, buffers, **settings)


def sites(n: int = 4, **tampers: Tamper) -> list:
    """n honest clients; ``c1=tamper`` changes the replies of client 1."""
    return [site(i, tampers.get(f"c{i}")) for i in range(n)]


def mean_step(weights: dict[str, Tensor], clients: list[int], server_round: int = 1) -> dict:
    """The oracle: weights plus the mean update of ``clients``, weighted by images, in loops."""
    total = sum(examples_of(c) for c in clients)
    new = {name: value.double() for name, value in weights.items()}
    for client in clients:
        update = drawn_update(client, server_round, weights)
        for name in new:
            new[name] = new[name] + examples_of(client) / total * update[name].double()
    return {name: value.float() for name, value in new.items()}


def assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


class Trusting(Aggregator):
    """Trusts each client with a given weight, and counts its rounds in its state."""

    weights: tuple[float, ...]

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        trust = torch.tensor(self.weights, dtype=torch.float64)
        rounds = state.get("rounds", torch.zeros(())) + 1
        update = (trust @ cohort.updates.double()).float()
        return Aggregation(update, trust, 10 * trust, {"w": 2 * trust}), {"rounds": rounds}


class Refusing(Aggregator):
    """Needs something that no cohort has."""

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        raise ValueError(f"refusing needs n_clients >= 99, got {len(cohort.client_ids)}")


class Overflowing(Aggregator):
    """Returns an update that no model can take."""

    value: str

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        update = cohort.updates[0].clone()
        update[5] = float(self.value)
        uniform = torch.full((len(cohort.client_ids),), 1 / len(cohort.client_ids))
        return Aggregation(update, uniform.double()), {"spoilt": torch.ones(1)}


# ---- an honest round


def test_a_round_adds_the_mean_update():
    subject = strategy()
    weights = start_weights()
    new, record = subject.train_round(1, weights, InProcessGrid(sites()))
    assert_weights(new, mean_step(start_weights(), [0, 1, 2, 3]))
    assert_weights(weights, start_weights())
    assert record == subject.last_round
    assert (record.server_round, record.rejected, record.kept_global) == (1, {}, None)
    assert record.pruned == ()
    for client, found in enumerate(record.clients):
        update = LAYOUT.flatten(drawn_update(client, 1, weights))
        assert found == ClientRecord(
            client=client,
            n_examples=examples_of(client),
            n_steps=3,
            loss=1.0 + client,
            norm=update.double().norm().item(),
            trust=examples_of(client) / 100,
            score=None,
            layer_scores={},
        )
    assert record.loss == pytest.approx((10 * 1 + 20 * 2 + 30 * 3 + 40 * 4) / 100)


def test_the_new_weights_are_tensors_of_their_own():
    new, _ = strategy().train_round(1, start_weights(), InProcessGrid(sites()))
    assert new["w"].untyped_storage().nbytes() == 4 * 24


def test_messages_carry_weights_buffers_round_and_settings():
    seen: dict[int, Message] = {}

    def listening(partition_id: int) -> Callable[[Message], Message]:
        def client(message: Message) -> Message:
            if message.metadata.message_type == "train":
                seen[partition_id] = message
            return site(partition_id)(message)

        return client

    grid = InProcessGrid([listening(i) for i in range(4)])
    strategy(buffers=BUFFERS).train_round(7, start_weights(), grid)
    assert set(seen) == {0, 1, 2, 3}
    for message in seen.values():
        content = message.content
        assert_weights(to_tensors(content.array_records["arrays"]), start_weights())
        assert torch.equal(
            to_tensors(content.array_records["buffers"])["bn.running_mean"],
            BUFFERS["bn.running_mean"],
        )
        assert dict(content.config_records["config"]) == {"server-round": 7}
        assert re.fullmatch(r"7\.[0-9a-f]{16}", message.metadata.group_id)


def test_every_reply_is_announced_as_it_comes():
    heard = []
    grid = InProcessGrid(sites())
    strategy().train_round(1, start_weights(), grid, lambda client, reply: heard.append(client))
    assert sorted(heard) == [0, 1, 2, 3]


def test_scores_and_trust_of_each_client_are_recorded():
    subject = strategy(Trusting(weights=(0.5, 0.0, 0.2, 0.3)))
    _, record = subject.train_round(1, start_weights(), InProcessGrid(sites()))
    assert [c.trust for c in record.clients] == [0.5, 0.0, 0.2, 0.3]
    assert [c.score for c in record.clients] == [5.0, 0.0, 2.0, 3.0]
    assert [c.layer_scores for c in record.clients] == [{"w": w} for w in (1.0, 0.0, 0.4, 0.6)]
    assert record.pruned == (1,)


def test_the_aggregators_state_goes_from_round_to_round():
    subject = strategy(Trusting(weights=(0.25,) * 4))
    weights, grid = start_weights(), InProcessGrid(sites())
    for server_round in (1, 2, 3):
        weights, _ = subject.train_round(server_round, weights, grid)
    assert subject.state["rounds"] == 3


class Counting(Aggregator):
    """Refuses, and says how many threads it could have used."""

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        raise ValueError(f"threads: {torch.get_num_threads()}")


def test_the_aggregator_alone_has_the_servers_threads():
    before = torch.get_num_threads()
    subject = strategy(Counting(), n_threads=3)
    _, record = subject.train_round(1, start_weights(), InProcessGrid(sites()))
    assert record.kept_global == "aggregator refused: threads: 3"
    assert torch.get_num_threads() == before


class Placed(Aggregator):
    """Refuses, and says where it was to work."""

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        raise ValueError(f"device: {chosen_device()}")


@pytest.mark.parametrize(("device", "seen"), [("cpu", "None"), ("meta", "meta")])
def test_the_aggregator_works_where_it_is_told(device, seen):
    _, record = strategy(Placed(), device=device).train_round(
        1, start_weights(), InProcessGrid(sites())
    )
    assert record.kept_global == f"aggregator refused: device: {seen}"
    assert chosen_device() is None


def test_a_round_without_clients_has_no_loss():
    assert RoundRecord(1).loss is None


# ---- faults: the client is dropped, named and counted, and the round goes on with the rest


def arrays(change: Callable[[dict[str, np.ndarray]], None]) -> Tamper:
    """Changes the update's arrays."""

    def tamper(message: Message, content: RecordDict) -> RecordDict:
        values = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
        change(values)
        content["arrays"] = ArrayRecord({name: Array(value) for name, value in values.items()})
        return content

    return tamper


def put(value: float) -> Tamper:
    return arrays(lambda values: values["w"].__setitem__((1, 2), value))


def becomes(change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    return arrays(lambda values: values.update(w=change(values["w"])))


def metrics(**changes: object) -> Tamper:
    """Changes the metrics; underscores stand for hyphens."""

    def tamper(message: Message, content: RecordDict) -> RecordDict:
        for name, value in changes.items():
            content.metric_records["metrics"][name.replace("_", "-")] = value
        return content

    return tamper


def without(record: str) -> Tamper:
    def tamper(message: Message, content: RecordDict) -> RecordDict:
        del content[record]
        return content

    return tamper


def with_bytes(data: bytes) -> Tamper:
    def tamper(message: Message, content: RecordDict) -> RecordDict:
        content.array_records["arrays"]["w"] = Array("float32", (4, 6), "numpy.ndarray", data)
        return content

    return tamper


def huge_claim() -> bytes:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2147483648, 8), }\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(96)


FAULTS = {
    "NaN": (put(nan), "arrays[w] needs finite values"),
    "infinity": (put(inf), "arrays[w] needs finite values"),
    "missing key": (arrays(lambda values: values.pop("w")), "arrays lacks w"),
    "extra key": (arrays(lambda values: values.update(head=np.ones(2))), "arrays has unknown head"),
    "other key": (arrays(lambda values: values.update(v=values.pop("w"))), "arrays lacks w"),
    "wrong shape": (becomes(lambda w: w[:, :5]), "arrays[w] needs shape (4, 6), got (4, 5)"),
    "broadcastable shape": (becomes(lambda w: w[:1]), "arrays[w] needs shape (4, 6), got (1, 6)"),
    "transposed": (becomes(lambda w: w.T), "arrays[w] needs shape (4, 6), got (6, 4)"),
    "float64": (becomes(lambda w: w.astype(np.float64)), "arrays[w] needs dtype float32"),
    "too many bytes": (becomes(lambda w: np.ones(10**4, "f4")), "arrays[w] needs 96 bytes, got"),
    "garbage bytes": (with_bytes(b"garbage"), "arrays[w] is no readable array"),
    "zip bytes": (with_bytes(b"PK\x03\x04garbage"), "arrays[w] is no readable array"),
    "huge claim": (with_bytes(huge_claim()), "arrays[w] is no readable array"),
    "negative count": (metrics(num_examples=-89), "metrics[num-examples] needs an integer in 1.."),
    "zero count": (metrics(num_examples=0), "metrics[num-examples] needs an integer in 1.."),
    "absurd count": (metrics(num_examples=10**12), "metrics[num-examples] needs an integer in 1.."),
    "fractional count": (metrics(num_examples=20.5), "metrics[num-examples] needs an integer"),
    "list of counts": (metrics(num_examples=[20]), "metrics[num-examples] needs an integer"),
    "no steps": (metrics(num_steps=0), "metrics[num-steps] needs an integer in 1.."),
    "NaN loss": (metrics(loss=nan), "metrics[loss] needs a finite number, got nan"),
    "no metrics": (without("metrics"), "reply needs a MetricRecord"),
    "no arrays": (without("arrays"), "reply needs an ArrayRecord 'arrays'"),
    "error reply": (lambda message, content: Error(0, "no memory"), "client failed: no memory"),
    "silent": (lambda message, content: None, "no reply in time"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_client_is_dropped_and_named_and_the_round_goes_on(fault):
    tamper, why = FAULTS[fault]
    grid = InProcessGrid(sites(c1=tamper))
    tracemalloc.start()
    try:
        new, record = strategy().train_round(1, start_weights(), grid)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert_weights(new, mean_step(start_weights(), [0, 2, 3]))
    assert [c.client for c in record.clients] == [0, 2, 3]
    assert list(record.rejected) == [BAD] and record.rejected[BAD].startswith(why)
    assert record.kept_global is None


@pytest.mark.parametrize("fault", FAULTS)
def test_flowers_own_loop_survives_the_fault_too(fault):
    grid = InProcessGrid(sites(c1=FAULTS[fault][0]))
    subject = strategy()
    result = subject.start(grid, to_record(start_weights()), num_rounds=2)
    expected = mean_step(mean_step(start_weights(), [0, 2, 3], 1), [0, 2, 3], 2)
    assert_weights(to_tensors(result.arrays), expected)
    assert subject.last_round is not None and list(subject.last_round.rejected) == [BAD]
    assert dict(result.train_metrics_clientapp[2]) == {"n-valid": 3}


def test_a_program_that_raises_is_dropped_with_its_reason():
    grid = InProcessGrid([site(0), site(1), site(2), lambda m: train_fails(m, 3)])
    _, record = strategy().train_round(1, start_weights(), grid)
    assert record.rejected == {3: "client failed: RuntimeError('out of\\nmemory')"}


def train_fails(message: Message, partition_id: int) -> Message:
    query = message.metadata.message_type == "query"
    return names_itself(partition_id)(message) if query else failing(message)


def test_several_faults_in_one_round_are_all_named_in_order():
    grid = InProcessGrid(sites(c3=put(nan), c0=without("arrays"), c2=lambda m, c: None))
    subject = strategy(min_valid_replies=1)
    new, record = subject.train_round(1, start_weights(), grid)
    assert list(record.rejected) == [0, 2, 3]
    assert_weights(new, mean_step(start_weights(), [1]))


def test_the_claimed_limits_are_those_of_the_configuration():
    subject = strategy(limits=ReplyLimits(max_examples=20))
    _, record = subject.train_round(1, start_weights(), InProcessGrid(sites()))
    assert list(record.rejected) == [2, 3]


def test_a_node_that_is_gone_after_the_roll_call_is_dropped():
    grid = InProcessGrid(sites())
    subject = strategy()
    subject.train_round(1, start_weights(), grid)
    grid.gone = {list(grid.nodes)[BAD]}
    new, record = subject.train_round(2, start_weights(), grid)
    assert record.rejected == {BAD: "no reply in time"}
    assert_weights(new, mean_step(start_weights(), [0, 2, 3], 2))


def test_a_reply_of_a_node_outside_the_cohort_is_not_counted():
    grid = InProcessGrid(sites())
    subject = strategy(n_sampled=2)
    messages = subject.configure_train(1, to_record(start_weights()), ConfigRecord(), grid)
    asked = {m.metadata.dst_node_id for m in messages}
    stranger = next(node for node in grid.nodes if node not in asked)
    forged = Message(messages[0].content, stranger, "train")
    replies = [*grid.send_and_receive(messages), *grid.send_and_receive([forged])]
    subject.aggregate_train(1, replies)
    assert subject.last_round is not None
    assert len(subject.last_round.clients) == 2 and subject.last_round.rejected == {}


# ---- when the global model is kept


def assert_kept(subject: RobustStrategy, grid: InProcessGrid, why: str) -> None:
    """The round changes nothing at all, and says why."""
    before = {name: value.clone() for name, value in subject.buffers.items()}
    state = dict(subject.state)
    new, record = subject.train_round(1, start_weights(), grid)
    assert_weights(new, start_weights())
    assert record.kept_global is not None and record.kept_global.startswith(why)
    assert record.clients == () and record.pruned == () and record.loss is None
    assert subject.last_round is record
    assert subject.state == state
    assert all(torch.equal(subject.buffers[name], value) for name, value in before.items())
    arrays_, metrics_ = subject.aggregate_train(1, [])
    assert arrays_ is None and metrics_ is not None and metrics_["n-valid"] == 0


@pytest.mark.parametrize("n_faulty", [3, 4])
def test_too_few_valid_replies_keep_the_global_model(n_faulty):
    grid = InProcessGrid(sites(**{f"c{i}": put(nan) for i in range(n_faulty)}))
    assert_kept(
        strategy(buffers=BUFFERS),
        grid,
        f"needed 2 valid replies, got {4 - n_faulty}",
    )


def test_just_enough_valid_replies_are_enough():
    grid = InProcessGrid(sites(c0=put(nan), c1=put(nan)))
    new, record = strategy().train_round(1, start_weights(), grid)
    assert record.kept_global is None
    assert_weights(new, mean_step(start_weights(), [2, 3]))


def test_an_aggregator_that_refuses_keeps_the_global_model():
    why = "aggregator refused: refusing needs n_clients >= 99, got 4"
    assert_kept(strategy(Refusing(), buffers=BUFFERS), InProcessGrid(sites()), why)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_an_aggregate_that_is_not_finite_keeps_the_global_model(value):
    subject = strategy(Overflowing(value=value), buffers=BUFFERS)
    assert_kept(subject, InProcessGrid(sites()), "aggregated update is not finite")


def test_after_a_kept_round_the_next_one_goes_on():
    sick = [True]

    def tamper(message: Message, content: RecordDict) -> RecordDict:
        return put(nan)(message, content) if sick[0] else content

    grid = InProcessGrid(sites(c0=tamper, c1=tamper, c2=tamper))
    subject = strategy()
    weights, record = subject.train_round(1, start_weights(), grid)
    assert record.kept_global is not None
    sick[0] = False
    weights, record = subject.train_round(2, weights, grid)
    assert record.kept_global is None
    assert_weights(weights, mean_step(start_weights(), [0, 1, 2, 3], 2))


def test_a_federation_with_a_missing_site_does_not_start():
    with pytest.raises(TooFewClients):
        strategy(join_timeout=0.2).train_round(
            1, start_weights(), InProcessGrid([*sites(3), silent])
        )


# ---- who takes part


def trained(seed: int, n_rounds: int = 4, grid_seed: int = 0) -> tuple[dict[str, Tensor], list]:
    """The weights after some rounds of 3 of 8 clients, and who was in them."""
    grid = InProcessGrid(sites(8), grid_seed)
    subject = strategy(seed=seed, n_clients=8, n_sampled=3)
    weights, cohorts = start_weights(), []
    for server_round in range(1, n_rounds + 1):
        weights, record = subject.train_round(server_round, weights, grid)
        cohorts.append(tuple(c.client for c in record.clients))
        assert record.rejected == {}
    return weights, cohorts


@pytest.mark.parametrize("grid_seed", [1, 2, 3])
def test_node_ids_and_the_order_of_replies_do_not_change_one_bit(grid_seed):
    weights, cohorts = trained(seed=0)
    again, cohorts_again = trained(seed=0, grid_seed=grid_seed)
    assert cohorts == cohorts_again
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_cohorts_differ_between_rounds_and_seeds():
    cohorts = trained(seed=0)[1]
    assert all(len(cohort) == 3 for cohort in cohorts)
    assert len(set(cohorts)) > 1 and trained(seed=1)[1] != cohorts


def test_who_is_not_sampled_is_not_asked_to_train():
    grid = InProcessGrid(sites(8))
    subject = strategy(n_clients=8, n_sampled=3)
    new, record = subject.train_round(1, start_weights(), grid)
    ids = dict(enumerate(grid.nodes))
    cohort = [c.client for c in record.clients]
    asked = [node for node, kind in grid.asked if kind == "train"]
    assert asked == [ids[client] for client in cohort]
    assert_weights(new, mean_step(start_weights(), cohort))


def test_a_resumed_run_goes_on_as_the_old_one_would_have():
    """Rounds 3 and 4 of a new strategy and new nodes, from the weights after round 2."""
    weights, _ = trained(seed=0, n_rounds=2)
    grid = InProcessGrid(sites(8), seed=9)
    subject = strategy(n_clients=8, n_sampled=3)
    for server_round in (3, 4):
        weights, _ = subject.train_round(server_round, weights, grid)
    expected, _ = trained(seed=0, n_rounds=4)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


# ---- batch statistics


def test_batch_statistics_are_averaged_over_trusted_clients_and_counters_are_not():
    """Client i reports mean + i and counter + i; client 1 is not trusted, client 3 is dropped."""
    subject = strategy(Trusting(weights=(0.25, 0.0, 0.75)), buffers=BUFFERS)
    grid = InProcessGrid(sites(c3=put(nan)))
    subject.train_round(1, start_weights(), grid)
    expected = BUFFERS["bn.running_mean"] + 0.25 * 0 + 0.75 * 2
    torch.testing.assert_close(subject.buffers["bn.running_mean"], expected)
    assert subject.buffers["bn.num_batches_tracked"].item() == 4 + 2
    assert subject.buffers["bn.num_batches_tracked"].dtype == torch.int64
    assert subject.buffers["bn.running_mean"].dtype == torch.float32


def test_counters_of_clients_without_trust_do_not_count():
    subject = strategy(Trusting(weights=(0.5, 0.5, 0.0, 0.0)), buffers=BUFFERS)
    subject.train_round(1, start_weights(), InProcessGrid(sites()))
    assert subject.buffers["bn.num_batches_tracked"].item() == 4 + 1


def test_batch_statistics_do_not_touch_the_weights_or_the_buffers_given():
    given = {name: value.clone() for name, value in BUFFERS.items()}
    subject = strategy(buffers=given)
    new, _ = subject.train_round(1, start_weights(), InProcessGrid(sites()))
    assert_weights(new, mean_step(start_weights(), [0, 1, 2, 3]))
    assert all(torch.equal(given[name], value) for name, value in BUFFERS.items())


def test_the_next_round_starts_from_the_merged_statistics():
    received = []

    def tamper(message: Message, content: RecordDict) -> RecordDict:
        received.append(to_tensors(message.content.array_records["buffers"])["bn.running_mean"])
        return content

    subject = strategy(Mean(weighting="uniform"), buffers=BUFFERS)
    weights, grid = start_weights(), InProcessGrid(sites(c0=tamper))
    for server_round in (1, 2):
        weights, _ = subject.train_round(server_round, weights, grid)
    torch.testing.assert_close(received[1], BUFFERS["bn.running_mean"] + 1.5)


@pytest.mark.parametrize("missing", [True, False])
def test_a_client_without_the_models_statistics_is_dropped(missing):
    def tamper(message: Message, content: RecordDict) -> RecordDict:
        if missing:
            del content["buffers"]
        else:
            content["buffers"] = to_record({"bn.running_mean": torch.zeros(2)})
        return content

    subject = strategy(buffers=BUFFERS)
    _, record = subject.train_round(1, start_weights(), InProcessGrid(sites(c1=tamper)))
    assert record.rejected[1].startswith("buffers lacks bn.num_batches_tracked")


# ---- Flower's own loop


def test_flowers_fedavg_gives_the_same_model():
    """The oracle: stock FedAvg over clients that reply their weights instead of their updates."""
    initial = to_record(start_weights())
    ours = strategy().start(InProcessGrid(sites()), initial, num_rounds=3)
    theirs = FedAvg(min_available_nodes=4).start(
        InProcessGrid([site(i, sends_weights=True) for i in range(4)]), initial, num_rounds=3
    )
    found, expected = to_tensors(ours.arrays), to_tensors(theirs.arrays)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    for server_round in (1, 2, 3):
        local = ours.evaluate_metrics_clientapp[server_round]
        assert dict(local) == pytest.approx(dict(theirs.evaluate_metrics_clientapp[server_round]))


@pytest.mark.parametrize("n_sampled", [None, 3])
def test_flowers_own_loop_equals_ours_bit_by_bit(n_sampled):
    options = {"n_clients": 8, "n_sampled": n_sampled, "buffers": BUFFERS}
    theirs, ours = strategy(**options), strategy(**options)
    result = theirs.start(InProcessGrid(sites(8), seed=5), to_record(start_weights()), num_rounds=3)
    weights, grid = start_weights(), InProcessGrid(sites(8))
    for server_round in (1, 2, 3):
        weights, record = ours.train_round(server_round, weights, grid)
    found = to_tensors(result.arrays)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert all(torch.equal(theirs.buffers[n], value) for n, value in ours.buffers.items())
    assert theirs.last_round == record


def test_without_a_valid_reply_flowers_loop_keeps_the_model():
    grid = InProcessGrid(sites(**{f"c{i}": put(nan) for i in range(4)}))
    result = strategy().start(grid, to_record(start_weights()), num_rounds=2)
    assert len(result.arrays) == 0
    assert dict(result.train_metrics_clientapp[2]) == {"n-valid": 0}


# ---- local evaluation


def evaluated(*replies: dict | Error | None) -> dict | None:
    question = Message(RecordDict(), 5, "evaluate")
    records = [
        Message(
            r if isinstance(r, Error) else RecordDict({"metrics": MetricRecord(r)} if r else {}),
            reply_to=question,
        )
        for r in replies
    ]
    found = strategy().aggregate_evaluate(1, records)
    return None if found is None else dict(found)


GOOD = {"num-examples": 10, "loss": 2.0, "accuracy": 0.5}


def test_local_metrics_are_weighted_by_images():
    other = {"num-examples": 30, "loss": 4.0, "accuracy": 1.0}
    assert evaluated(GOOD, other) == pytest.approx({"loss": 3.5, "accuracy": 0.875})


@pytest.mark.parametrize(
    "bad",
    [
        Error(0, "no memory"),
        None,
        {**GOOD, "num-examples": 0},
        {**GOOD, "num-examples": -5},
        {**GOOD, "num-examples": 10**12},
        {**GOOD, "num-examples": 10.0},
        {**GOOD, "loss": nan},
        {**GOOD, "loss": inf},
        {**GOOD, "accuracy": 1.5},
        {**GOOD, "accuracy": -0.1},
        {**GOOD, "accuracy": nan},
        {**GOOD, "accuracy": [0.5]},
        {"num-examples": 10, "loss": 2.0},
    ],
)
def test_malformed_local_metrics_are_left_out(bad):
    assert evaluated(GOOD, bad) == {"loss": 2.0, "accuracy": 0.5}
    assert evaluated(bad) is None


def test_only_the_last_cohort_is_asked_to_evaluate():
    grid = InProcessGrid(sites(8))
    subject = strategy(n_clients=8, n_sampled=3)
    subject.start(grid, to_record(start_weights()), num_rounds=1)
    kinds = [kind for _, kind in grid.asked]
    assert kinds.count("train") == kinds.count("evaluate") == 3
    by_kind = {k: {n for n, kind in grid.asked if kind == k} for k in ("train", "evaluate")}
    assert by_kind["train"] == by_kind["evaluate"]
