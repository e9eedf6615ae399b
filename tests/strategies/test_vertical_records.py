"""Screening of what passive parties send: refused by name, never repaired."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from clients.arrays import HeldArray
from fedface.aggregation.screening import InvalidReply
from fedface.vertical.channel import Channel
from strategies.vertical_records import (
    BACKWARD,
    EMBED,
    failure,
    request,
    to_embeddings,
    to_spent,
    to_tokens,
)

ASKED = torch.tensor([4, 2, 9])
CHANNEL = Channel("right", 5, 1.0, 0.1)

pytestmark = pytest.mark.usefixtures("flower_identity")


def honest() -> RecordDict:
    z = np.full((3, 5), 0.2, np.float32)
    return RecordDict(
        {
            "embeddings": ArrayRecord({"z": Array(z)}),
            "records": ArrayRecord({"rows": Array(ASKED.numpy())}),
            "metrics": MetricRecord({"release": 3}),
        }
    )


def reply(content: RecordDict | Error) -> Message:
    return Message(content, reply_to=request(1, EMBED, 1, ASKED))


def test_an_honest_answer_is_read() -> None:
    z, number = to_embeddings(reply(honest()), ASKED, CHANNEL)
    assert z.shape == (3, 5) and z.dtype == torch.float32 and number == 3
    held = honest()
    record = ArrayRecord()
    record["z"] = HeldArray(torch.full((3, 5), 0.2))
    held["embeddings"] = record
    assert torch.equal(to_embeddings(reply(held), ASKED, CHANNEL)[0], z)


def sends(z: np.ndarray) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["embeddings"] = ArrayRecord({"z": Array(z)})

    return change


def answers_for(rows: list[int], dtype: type = np.int64) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["records"] = ArrayRecord({"rows": Array(np.array(rows, dtype))})

    return change


def without(name: str) -> Callable[[RecordDict], None]:
    return lambda content: content.pop(name) and None


def numbered(value: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({"release": value})  # type: ignore[dict-item]

    return change


def more(content: RecordDict) -> None:
    content["gift"] = ConfigRecord({"a": 1})


def broken(content: RecordDict) -> None:
    content["embeddings"] = ArrayRecord({"z": Array("float32", (3, 5), "numpy.ndarray", b"junk")})


GOOD = np.full((3, 5), 0.2, np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (sends(np.where(np.eye(3, 5) > 0, np.nan, GOOD).astype(np.float32)), "finite embeddings"),
        (sends(GOOD * np.float32(np.inf)), "finite embeddings"),
        (sends(GOOD[:2]), r"floats of shape \(3, 5\), got \(2, 5\)"),
        (sends(GOOD.T.copy()), r"floats of shape \(3, 5\), got \(5, 3\)"),
        (sends(GOOD.astype(np.float64)), "float32, got float64"),
        (sends(np.zeros((3, 5), np.int32)), "float32, got int32"),
        (sends(100 * GOOD), "clipped at 1"),
        (sends(np.zeros((3, 5000), np.float32)), "bytes, got"),
        (broken, "no readable array"),
        (answers_for([4, 2, 99]), "rows that nobody asked for, the first is 99"),
        (answers_for([2, 4, 9]), "in the order asked"),
        (answers_for([4, 2]), "int64 rows"),
        (answers_for([4, 2, 9], np.int32), "int64 rows"),
        (without("embeddings"), "alone, got other arrays"),
        (without("records"), "alone, got other arrays"),
        (without("metrics"), "number its release"),
        (numbered(-1), "number its release"),
        (numbered(0.5), "number its release"),
        (more, "unknown records gift"),
    ],
)
def test_anything_else_is_refused_by_name(change: Callable[[RecordDict], None], why: str) -> None:
    content = honest()
    change(content)
    with pytest.raises(InvalidReply, match=why) as refused:
        to_embeddings(reply(content), ASKED, CHANNEL)
    assert "party right" in str(refused.value)


def test_a_party_that_failed_is_named() -> None:
    failed = reply(Error(0, "the disk is full"))
    assert failure(failed) == "the disk is full" and failure(reply(honest())) is None
    with pytest.raises(InvalidReply, match="party right failed: the disk is full"):
        to_embeddings(failed, ASKED, CHANNEL)


def test_a_request_holds_rows_and_gradient() -> None:
    message = request(5, BACKWARD, 3, ASKED, (7, torch.ones(3, 5)))
    assert message.metadata.dst_node_id == 5 and message.metadata.message_type == BACKWARD
    assert dict(message.content["config"]) == {"server-round": 3, "answers": 7}
    assert message.content["request"]["rows"].numpy().tolist() == ASKED.tolist()
    assert message.content["gradients"]["z"].numpy().shape == (3, 5)
    assert set(request(5, EMBED, 3).content) == {"config"}


def test_tokens() -> None:
    def sent(value: object) -> Message:
        return reply(RecordDict({"alignment": ConfigRecord({"tokens": value})}))  # type: ignore[dict-item]

    assert to_tokens(sent(["a", "b"]), "right", 2) == ("a", "b")
    for wrong in (sent(["a", "b", "c"]), sent([1, 2]), sent("a"), reply(honest())):
        with pytest.raises(InvalidReply, match="party right"):
            to_tokens(wrong, "right", 2)


def test_what_was_spent() -> None:
    metrics = MetricRecord({"release": 2, "replace-one": 1.5, "zero-out": float("nan"), "x": 1})
    found = to_spent(reply(RecordDict({"metrics": metrics})), "right")
    assert found == {"release": 2, "replace_one": 1.5}
    with pytest.raises(InvalidReply, match="party right"):
        to_spent(reply(RecordDict()), "right")
