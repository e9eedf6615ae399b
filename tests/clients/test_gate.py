"""The gate: what an altered app sends does not leave, what an honest one sends does."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.app import RecordDict as Records

from clients.gate import DENIED, Gate
from clients.policy import SitePolicy
from clients.receipts import CHAIN, Receipts, verify
from fedface import parameters
from fedface.parameters import Layout
from tests.clients.sites import context, message, same_reply, site

pytestmark = pytest.mark.usefixtures("flower_identity")

App = Callable[[Message, Context], Message]
FACE = site()
WEIGHTS = {slot.name: slot.shape for slot in Layout.of(FACE.backbone).slots}
BUFFERS = {name: tuple(v.shape) for name, v in parameters.buffers(FACE.backbone).items()}
OPEN: dict[str, Any] = {"weights": WEIGHTS, "buffers": BUFFERS}


def gate(folder: Path, run_hash: str | None = None, app: str | None = None, **policy: Any) -> Gate:
    settings = SitePolicy.model_validate({**OPEN, **policy})
    return Gate(settings, Receipts(folder), run_hash=run_hash, app=app)


def altered(change: Callable[[Message], object]) -> App:
    """The honest app, whose reply somebody changes before it leaves the app."""

    def app(asked: Message, where: Context) -> Message:
        reply = FACE.train(asked, where)
        changed = change(reply)
        return changed if isinstance(changed, Message) else reply

    return app


def rules(folder: Path) -> list[str]:
    return [b["rule"] for b in Receipts(folder).bodies() if b["event"] == "denied"]


def assert_denied(folder: Path, reply: Message, rule: str) -> None:
    """Nothing got out: an error with the rule, a receipt that says so, no receipt of a release."""
    assert reply.has_error() and not reply.has_content()
    assert reply.error.code == DENIED
    assert reply.error.reason.startswith("denied by the site's policy: ")
    assert rule in reply.error.reason
    assert rules(folder)[-1] == reply.error.reason.removeprefix("denied by the site's policy: ")
    verify(folder)


def test_an_honest_reply_leaves_as_it_is_and_has_a_receipt(tmp_path):
    reply = gate(tmp_path)(message(1), context(), FACE.train)
    assert same_reply(reply, FACE.train(message(1), context()))
    (body,) = Receipts(tmp_path).bodies()
    record = reply.content.array_records
    update = np.concatenate([a.numpy().ravel() for a in record["arrays"].values()])
    assert body["event"] == "released" and body["kind"] == "train" and body["round"] == 1
    assert body["norm"] == pytest.approx(np.linalg.norm(update.astype(np.float64)))
    assert body["tensors"] == len(WEIGHTS) + len(BUFFERS)
    n_bytes = sum(len(a.data) + len(n) for r in record.values() for n, a in r.items())
    assert body["bytes"] == n_bytes + sum(len(n) + 8 for n in ("num-examples", "num-steps", "loss"))
    assert (body["epsilon"], body["delta"], body["error"]) == (None, None, False)


def head_of(where: Context) -> np.ndarray:
    return where.state.array_records["private-head"]["weight"].numpy()


def head_as_record(reply: Message) -> None:
    reply.content["head"] = ArrayRecord({"weight": Array(np.ones((7, 16), np.float32))})


def head_among_weights(reply: Message) -> None:
    reply.content.array_records["arrays"]["head.weight"] = Array(np.ones((7, 16), np.float32))


def prototype_among_buffers(reply: Message) -> None:
    reply.content.array_records["buffers"]["prototype"] = Array(np.ones(16, np.float32))


def prototype_in_place_of_a_weight(reply: Message) -> None:
    name = next(iter(WEIGHTS))
    reply.content.array_records["arrays"][name] = Array(np.ones(16, np.float32))


def prototype_behind_a_weight(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    name = next(iter(WEIGHTS))
    honest = record[name]
    data = honest.data + np.ones(16, np.float32).tobytes()
    record[name] = Array(honest.dtype, honest.shape, honest.stype, data)


def prototype_in_the_header(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    name = next(iter(WEIGHTS))
    honest = record[name]
    data = honest.data.replace(b" \n", b"\t\n", 1)
    assert data != honest.data
    record[name] = Array(honest.dtype, honest.shape, honest.stype, data)


def prototype_as_type(reply: Message) -> None:
    record = reply.content.array_records["arrays"]
    name = next(iter(WEIGHTS))
    honest = record[name]
    record[name] = Array("float32 0.1 0.2 0.3", honest.shape, honest.stype, honest.data)


def prototype_as_metrics(reply: Message) -> None:
    reply.content["metrics"]["prototype"] = [0.1] * 16


def prototype_in_an_allowed_metric(reply: Message) -> None:
    reply.content["metrics"]["loss"] = [0.1] * 16


def prototype_as_text(reply: Message) -> None:
    reply.content["note"] = ConfigRecord({"prototype": "0.1 0.2 0.3"})


def prototype_in_place_of_metrics(reply: Message) -> None:
    reply.content["metrics"] = ArrayRecord({"prototype": Array(np.ones(16, np.float32))})


def prototype_as_group(reply: Message) -> None:
    reply.metadata.__dict__["_group_id"] = "0.1 0.2 0.3"


def to_somebody_else(reply: Message) -> None:
    reply.metadata.__dict__["_dst_node_id"] = 99


def doubles(reply: Message) -> None:
    name = next(iter(WEIGHTS))
    reply.content.array_records["arrays"][name] = Array(np.ones(WEIGHTS[name], np.float64))


def fortran_order(reply: Message) -> None:
    name = next(name for name, shape in WEIGHTS.items() if len(shape) == 2)
    values = np.asfortranarray(np.ones(WEIGHTS[name], np.float32))
    reply.content.array_records["arrays"][name] = Array(values)


def nothing_readable(reply: Message) -> None:
    name = next(iter(WEIGHTS))
    reply.content.array_records["arrays"][name] = Array("float32", WEIGHTS[name], "x", b"abc")


def not_a_number(reply: Message) -> None:
    name = next(iter(WEIGHTS))
    values = np.full(WEIGHTS[name], np.nan, np.float32)
    reply.content.array_records["arrays"][name] = Array(values)


def an_endless_metric(reply: Message) -> None:
    reply.content["metrics"]["loss"] = float("nan")


def a_huge_metric(reply: Message) -> None:
    reply.content["metrics"]["num-steps"] = 10**40


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (head_as_record, "a record that is not on the allow-list"),
        (head_among_weights, "a tensor that is not on the allow-list of arrays"),
        (prototype_among_buffers, "a tensor that is not on the allow-list of buffers"),
        (prototype_in_place_of_a_weight, "another shape or type"),
        (prototype_behind_a_weight, "another shape or type"),
        (prototype_in_the_header, "another shape or type"),
        (prototype_as_type, "another shape or type"),
        (prototype_as_metrics, "a metric that is not on the allow-list"),
        (prototype_in_an_allowed_metric, "a metric that is no single number"),
        (prototype_as_text, "a record that is not on the allow-list"),
        (prototype_in_place_of_metrics, "a record that is not on the allow-list"),
        (prototype_as_group, "does not answer its message"),
        (to_somebody_else, "does not answer its message"),
        (doubles, "another shape or type"),
        (fortran_order, "another shape or type"),
        (nothing_readable, "another shape or type"),
        (not_a_number, "NaN or infinity"),
        (an_endless_metric, "not finite or too large"),
        (a_huge_metric, "not finite or too large"),
    ],
)
def test_an_altered_app_gets_nothing_out(tmp_path, change, rule):
    reply = gate(tmp_path)(message(1), context(), altered(change))
    assert_denied(tmp_path, reply, rule)
    assert all(body["event"] == "denied" for body in Receipts(tmp_path).bodies())
    assert "0.1 0.2" not in str(reply.error) + str(reply.metadata.__dict__)


def test_the_true_head_stays_and_so_does_its_name(tmp_path):
    where = context()

    def app(asked: Message, where: Context) -> Message:
        reply = FACE.train(asked, where)
        secret = head_of(where)
        name = f"anna {secret[0, 0]:.6f}"
        reply.content.array_records["arrays"][name] = Array(secret)
        return reply

    reply = gate(tmp_path)(message(1), where, app)
    assert_denied(tmp_path, reply, "allow-list of arrays")
    assert "anna" not in reply.error.reason
    assert "anna" in Receipts(tmp_path).bodies()[0]["detail"]


def test_buffers_stay_unless_they_are_named(tmp_path):
    reply = gate(tmp_path, buffers={})(message(1), context(), FACE.train)
    assert_denied(tmp_path, reply, "allow-list of buffers")


def test_a_policy_that_says_backbone_takes_it_from_who_knows(tmp_path):
    policy = SitePolicy(buffers="backbone")
    with pytest.raises(ValueError, match="needs to name its tensors"):
        Gate(policy, Receipts(tmp_path))
    asked: list[int] = []

    def backbone():
        asked.append(1)
        return WEIGHTS, BUFFERS

    known = Gate(policy, Receipts(tmp_path), backbone)
    assert known(message(1), context(), FACE.train).has_content()
    assert known(message(1, "evaluate"), context(), FACE.evaluate).has_content()
    assert len(asked) == 1, "an evaluation has no tensors"
    assert known(message(1), context(), altered(head_among_weights)).has_error()


def test_an_evaluation_has_numbers_alone(tmp_path):
    def app(asked: Message, where: Context) -> Message:
        reply = FACE.evaluate(asked, where)
        reply.content["arrays"] = ArrayRecord(
            {name: Array(np.zeros(shape, np.float32)) for name, shape in WEIGHTS.items()}
        )
        return reply

    assert gate(tmp_path)(message(1, "evaluate"), context(), FACE.evaluate).has_content()
    reply = gate(tmp_path)(message(1, "evaluate"), context(), app)
    assert_denied(tmp_path, reply, "a record that is not on the allow-list")


def test_the_norm_bounds_the_whole_update(tmp_path):
    update = FACE.train(message(1), context()).content.array_records["arrays"].values()
    norm = float(torch.cat([torch.from_numpy(a.numpy()).double().ravel() for a in update]).norm())
    assert gate(tmp_path, max_norm=norm * 1.0001)(message(1), context(), FACE.train).has_content()
    reply = gate(tmp_path, max_norm=norm * 0.9999)(message(1), context(), FACE.train)
    assert_denied(tmp_path, reply, "longer than max_norm")
    assert f"{norm:.3g}" not in reply.error.reason, "how long it was is the site's business"


def stating(epsilon: object = None, delta: object = 1e-6) -> App:
    def state(reply: Message) -> None:
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if value is not None:
                reply.content["metrics"][name] = value

    return altered(state)


DP: dict[str, Any] = {"max_epsilon": 2.0, "max_delta": 1e-5}
NO_DP = "without the differential privacy demanded"


@pytest.mark.parametrize(
    ("app", "rule"),
    [
        (FACE.train, NO_DP),
        (stating(1.0, None), NO_DP),
        (stating(None), NO_DP),
        (stating(0.0), NO_DP),
        (stating(-1.0), NO_DP),
        (stating(float("nan")), "not finite"),
        (stating([1.0]), "no single number"),
        (stating(2.1), "the privacy budget is spent (epsilon)"),
        (stating(1.0, 2e-5), "the privacy budget is spent (delta)"),
    ],
)
def test_privacy_is_demanded(tmp_path, app, rule):
    guarded = gate(tmp_path, privacy=DP)
    assert_denied(tmp_path, guarded(message(1), context(), app), rule)
    assert guarded(message(1, "evaluate"), context(), FACE.evaluate).has_content()


def test_the_budget_is_that_of_all_runs_together(tmp_path):
    first, second = (gate(tmp_path, run_hash=c * 64, privacy=DP) for c in "ab")
    for number, epsilon in enumerate((0.5, 0.8, 0.8, 1.2), 1):
        assert first(message(number), context(), stating(epsilon)).has_content()
    assert_denied(tmp_path, first(message(5), context(), stating(1.1)), "account that went back")
    assert second(message(1), context(), stating(0.7)).has_content()
    reply = second(message(2), context(), stating(0.9))
    assert_denied(tmp_path, reply, "the privacy budget is spent (epsilon)")
    released = [b["epsilon"] for b in Receipts(tmp_path).bodies() if b["event"] == "released"]
    assert released == [0.5, 0.8, 0.8, 1.2, 0.7]


def test_statements_for_the_whole_site_are_not_added_up(tmp_path):
    demand = DP | {"stated_for": "site"}
    first, second = (gate(tmp_path, run_hash=c * 64, privacy=demand) for c in "ab")
    assert first(message(1), context(), stating(1.2)).has_content()
    assert second(message(1), context(), stating(1.9)).has_content()
    assert_denied(tmp_path, first(message(2), context(), stating(1.5)), "went back")
    assert_denied(tmp_path, first(message(2), context(), stating(2.5)), "budget is spent")


def size_of_a_reply(folder: Path) -> int:
    gate(folder)(message(1), context(), FACE.train)
    return int(Receipts(folder).bodies()[0]["bytes"])


def test_the_byte_budget_counts_what_left_before(tmp_path):
    one = size_of_a_reply(tmp_path / "one")
    tight = gate(tmp_path / "a", byte_budget={"per_reply": one - 1})
    assert_denied(tmp_path / "a", tight(message(1), context(), FACE.train), "per_reply")
    budget = {"per_run": 2 * one, "in_all": 3 * one}
    first, second = (gate(tmp_path / "b", run_hash=c * 64, byte_budget=budget) for c in "ab")
    assert first(message(1), context(), FACE.train).has_content()
    assert first(message(2), context(), FACE.train).has_content()
    assert_denied(tmp_path / "b", first(message(3), context(), FACE.train), "per_run is spent")
    assert second(message(1), context(), FACE.train).has_content()
    assert_denied(tmp_path / "b", second(message(2), context(), FACE.train), "in_all is spent")


def test_replies_of_a_run_are_counted(tmp_path):
    guarded = gate(tmp_path, max_replies_per_run=2)
    for server_round in (1, 1):
        assert guarded(message(server_round), context(), FACE.train).has_content()
    reply = guarded(message(2), context(), FACE.train)
    assert_denied(tmp_path, reply, "max_replies_per_run")
    assert guarded(message(2, "evaluate"), context(), FACE.evaluate).has_content()


def never(asked: Message, where: Context) -> Message:
    raise AssertionError("the app must not see this message")


@pytest.mark.parametrize(
    ("policy", "found", "rule"),
    [
        ({"runs": ["a" * 64]}, {"run_hash": "b" * 64}, "run that is not on the allow-list"),
        ({"runs": ["a" * 64]}, {}, "run that is not on the allow-list"),
        ({"runs": []}, {"run_hash": "a" * 64}, "run that is not on the allow-list"),
        ({"apps": ["a" * 64]}, {"app": "b" * 64}, "app that is not on the allow-list"),
        ({"apps": ["a" * 64]}, {}, "app that is not on the allow-list"),
        ({"messages": ["query"]}, {}, "kind of message"),
    ],
)
def test_what_was_not_agreed_to_does_not_even_start(tmp_path, policy, found, rule):
    assert_denied(tmp_path, gate(tmp_path, **found, **policy)(message(1), context(), never), rule)


def test_a_reply_to_what_was_not_agreed_to_does_not_leave_either(tmp_path):
    asked = message(1)
    reply = gate(tmp_path, runs=[]).passed(asked, FACE.train(asked, context()))
    assert_denied(tmp_path, reply, "run that is not on the allow-list")


def test_runs_and_apps_that_were_agreed_to_are_answered(tmp_path):
    known = gate(tmp_path, "a" * 64, "b" * 64, runs=["a" * 64], apps=["b" * 64])
    assert known(message(1), context(), FACE.train).has_content()
    (body,) = Receipts(tmp_path).bodies()
    assert (body["run"], body["run_hash"], body["app"]) == ("a" * 64, "a" * 64, "b" * 64)


def failing(text: str, raised: bool) -> App:
    def app(asked: Message, where: Context) -> Message:
        if raised:
            raise ValueError(text)
        return Message(Error(2, text), reply_to=asked)

    return app


@pytest.mark.parametrize("raised", [True, False])
def test_the_text_of_an_error_stays_unless_it_is_allowed(tmp_path, raised, caplog):
    app = failing("anna's head: 0.1 0.2 \x1b[2J" + "x" * 500, raised)
    with caplog.at_level(logging.WARNING):
        reply = gate(tmp_path)(message(1), context(), app)
    assert reply.error.reason == "the app failed; the site's log says why"
    assert "anna" in caplog.text
    short = gate(tmp_path, error_characters=40)(message(1), context(), app).error.reason
    assert len(short) == 40 and "anna" in short and "\x1b" not in short
    bodies = Receipts(tmp_path).bodies()
    assert [b["error"] for b in bodies] == [True, True] and bodies[1]["bytes"] == 40


def test_nothing_leaves_without_a_receipt(tmp_path):
    guarded = gate(tmp_path)
    assert guarded(message(1), context(), FACE.train).has_content()
    assert guarded(message(2), context(), FACE.train).has_content()
    whole = (tmp_path / CHAIN).read_bytes().splitlines(keepends=True)
    (tmp_path / CHAIN).write_bytes(whole[0])
    reply = gate(tmp_path)(message(3), context(), FACE.train)
    assert reply.has_error() and "no receipt could be written" in reply.error.reason


def test_a_reply_that_breaks_the_judge_stays(tmp_path):
    def app(asked: Message, where: Context) -> Message:
        reply = FACE.train(asked, where)
        record = reply.content.array_records["arrays"]
        name = next(iter(WEIGHTS))
        broken = Array("float32", record[name].shape, "numpy.ndarray", b"")
        broken.__dict__["data"] = None
        record[name] = broken
        return reply

    reply = gate(tmp_path)(message(1), context(), app)
    assert reply.has_error() and "could not be judged" in reply.error.reason


def test_a_message_of_an_unknown_kind_or_without_a_round(tmp_path):
    guarded = gate(tmp_path)
    asked = Message(Records(), 7, "query")

    def app(asked: Message, where: Context) -> Message:
        return Message(Records({"metrics": MetricRecord({"partition-id": 3})}), reply_to=asked)

    assert guarded(asked, context(), app).has_content()
    assert Receipts(tmp_path).bodies()[0]["round"] is None
    odd = Message(Records({"config": ConfigRecord({"server-round": "1"})}), 7, "train.other")
    assert guarded(odd, context(), app).has_content()
