import io
import time
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.arrays import HeldArray, held_record
from fedface.aggregation.screening import ClientUpdate, InvalidReply, ReplyLimits
from fedface.parameters import Layout
from fedface.random import stream
from strategies.records import to_cohort, to_record, to_tensors, to_update

pytestmark = pytest.mark.usefixtures("flower_identity")

LAYOUT = Layout.from_shapes({"w": (4, 6), "b": (3,), "s": ()})
BUFFERS = {"running_mean": torch.zeros(2), "num_batches_tracked": torch.tensor(4)}


def tensors() -> dict[str, Tensor]:
    rng = stream(0, "values")
    return {s.name: torch.randn(s.shape, generator=rng) for s in LAYOUT.slots}


def content(**changes: object) -> RecordDict:
    """An honest reply with records changed; a record of None is taken out."""
    records = {
        "arrays": to_record(tensors()),
        "buffers": to_record(BUFFERS),
        "metrics": MetricRecord({"num-examples": 20, "num-steps": 5, "loss": 1.5}),
        **changes,
    }
    return RecordDict({name: record for name, record in records.items() if record is not None})


def decoded(reply: RecordDict | Error, buffers: dict[str, Tensor] = BUFFERS) -> ClientUpdate:
    question = Message(RecordDict(), 5, "train")
    return to_update(3, Message(reply, reply_to=question), LAYOUT, buffers, ReplyLimits())


def reason(reply: RecordDict | Error) -> str:
    with pytest.raises(InvalidReply) as caught:
        decoded(reply)
    return str(caught.value)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: bytes, version: bytes = b"\x01\x00", body: bytes = bytes(96)) -> bytes:
    """``.npy`` bytes with ``text`` where the header stands."""
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


def described(shape: str, descr: str = "'<f4'", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    return header(text.encode())


def with_bytes(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    """A reply whose array ``w`` claims to be right but consists of ``data``."""
    record = to_record(tensors())
    record["w"] = Array("float32", (4, 6), stype, data)
    return content(arrays=record)


def test_records_and_tensors_are_inverse():
    original = {**tensors(), **BUFFERS, "half": torch.ones(2, dtype=torch.float16)}
    back = to_tensors(to_record(original))
    assert list(back) == list(original)
    for name, value in original.items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype


def test_decoded_tensors_may_be_written_to():
    record = to_record(tensors())
    to_tensors(record)["w"].zero_()
    assert torch.equal(to_tensors(record)["w"], tensors()["w"])


def test_an_honest_reply_is_read_exactly():
    update = decoded(content())
    assert torch.equal(update.delta, LAYOUT.flatten(tensors()))
    assert (update.client, update.n_examples, update.n_steps, update.loss) == (3, 20, 5, 1.5)
    assert torch.equal(update.buffers["num_batches_tracked"], BUFFERS["num_batches_tracked"])


def test_a_model_without_buffers_needs_no_buffer_record():
    assert decoded(content(buffers=None), buffers={}).buffers == {}
    assert decoded(content(buffers=ArrayRecord()), buffers={}).buffers == {}


@pytest.mark.parametrize("array", [np.asfortranarray(tensors()["w"].numpy()), tensors()["w"]])
def test_the_order_in_memory_does_not_matter(array):
    update = decoded(with_bytes(npy(np.asanyarray(array))))
    assert torch.equal(update.delta, LAYOUT.flatten(tensors()))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 6), dtype)
        for dtype in ("f2", "f4", "f8", ">f4", "i1", "u8", "c8", "?", "longdouble")
    ]
    + [np.zeros(shape, "f4") for shape in ((), (1,), (6, 4), (2, 3, 4), (0,), (0, 6), (1,) * 30)],
)
def test_whatever_numpy_writes_is_read_and_judged_by_shape_and_type(array):
    reply = with_bytes(npy(array))
    if array.shape == (4, 6) and array.dtype == np.float32:
        assert decoded(reply).delta[:24].sum() == 0
    else:
        assert reason(reply).startswith("arrays[w] needs ")


ZIP_END = b"PK\x05\x06" + bytes(18)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x04garbage like a pickle",
        b"PK\x03\x04garbage like a zip",
        ZIP_END,
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        header(b"(" * 40),
        header(b"'''" + b" " * 40),
        header(b"{" * 3000),
        header(b"{'descr': (), 'fortran_order': False, 'shape': (4, 6), }\n"),
        described("(4, 6)", descr="'|O'"),
        described("(4, 6)", descr="'<f3'"),
        described("(4, 6)", descr="[('a', '<f4')]"),
        described("(4, 6)", descr="'<M8[s]'"),
        described("(4, -6)"),
        described("(4.0, 6)"),
        described("(4, 6)", order="1"),
        described("(4, 7)"),
        described("(4, 5)"),
        described("(0, 999999999999999)"),
        described("(" + ", ".join(["1"] * 33) + ")"),
        header(npy(np.zeros((4, 6), "f4"))[10:128], version=b"\x02\x00"),
        npy(np.zeros((4, 6), "f4")) + b"\x00",
        npy(np.zeros((4, 6), "f4"))[:-1],
    ],
)
def test_bytes_that_are_no_plain_array_are_refused(data):
    assert reason(with_bytes(data)).startswith("arrays[w] is no readable array")


def test_a_whole_zip_of_arrays_is_refused():
    """``numpy.load`` would open it as an archive, which has neither shape nor type."""
    archive = io.BytesIO()
    np.savez(archive, np.zeros((4, 6), np.float32))
    assert reason(with_bytes(archive.getvalue())).startswith("arrays[w] is no readable array")


def test_an_unknown_serialisation_is_refused():
    data = npy(np.zeros((4, 6), np.float32))
    assert reason(with_bytes(data, stype="pickle")).startswith("arrays[w] is no readable array")


def test_a_header_that_claims_a_huge_shape_allocates_nothing():
    reply = with_bytes(described("(2147483648, 8)"))
    tracemalloc.start()
    try:
        assert reason(reply).startswith("arrays[w] is no readable array")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_too_many_bytes_are_refused_unread():
    reply = with_bytes(npy(np.zeros(5000, np.float32)))
    assert reason(reply) == f"arrays[w] needs 96 bytes, got {128 + 20_000}"


def test_an_array_of_an_unknown_name_is_not_even_decoded():
    record = to_record(tensors())
    record["head"] = Array("float32", (4,), "numpy.ndarray", bytes(10_000))
    assert reason(content(arrays=record)) == "arrays has unknown head (1 extra)"


@pytest.mark.parametrize("text", [b"1" * 4000, b"1," * 2000, b"1, " * 1300, b" " * 4000])
def test_a_header_made_to_be_hard_to_read_takes_no_time(text):
    shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + text + b"x"
    started = time.process_time()
    assert reason(with_bytes(header(shape, body=b""))).startswith("arrays[w] is no readable array")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (content(metrics=None), "reply needs a MetricRecord, got NoneType"),
        (content(metrics=ConfigRecord({"num-examples": 1})), "reply needs a MetricRecord, got C"),
        (content(metrics=to_record(tensors())), "reply needs a MetricRecord, got ArrayRecord"),
        (content(arrays=None), "reply needs an ArrayRecord 'arrays', got NoneType"),
        (content(arrays=MetricRecord({"w": 1.0})), "reply needs an ArrayRecord 'arrays', got M"),
        (content(buffers=ConfigRecord()), "reply needs an ArrayRecord 'buffers', got ConfigRecord"),
        (content(buffers=None), "buffers lacks num_batches_tracked, running_mean (2 missing)"),
        (content(head=to_record(tensors())), "reply has unknown records head"),
        (content(metrics=MetricRecord({"num-examples": 20})), "metrics[num-steps] needs"),
        (Error(0, "out of\nmemory"), "client failed: out of memory"),
        (Error(0), "client failed: None"),
    ],
)
def test_other_faults_are_refused_by_name(reply, why):
    assert reason(reply).startswith(why)


def test_a_reply_of_neither_content_nor_error_is_refused():
    reply = Message(content(), reply_to=Message(RecordDict(), 5, "train"))
    reply.__dict__["_content"] = None
    with pytest.raises(InvalidReply, match="reply needs content, got none"):
        to_update(3, reply, LAYOUT, BUFFERS, ReplyLimits())


def test_what_a_client_writes_stays_short_in_the_message():
    assert len(reason(Error(0, "x" * 10**6))) < 400
    assert len(reason(content(**{"x" * 10**6: ConfigRecord()}))) < 300


def test_a_cohort_is_ordered_by_client_whatever_the_order_of_replies():
    updates = [
        ClientUpdate(c, torch.full((LAYOUT.dim,), float(c)), {}, 10 * c, c, 0.1) for c in (5, 2, 9)
    ]
    cohort = to_cohort(updates, LAYOUT, server_round=4, seed=8)
    assert cohort.client_ids == (2, 5, 9)
    assert cohort.updates[:, 0].tolist() == [2, 5, 9]
    assert cohort.n_examples.tolist() == [20, 50, 90]
    assert cohort.n_steps.tolist() == [2, 5, 9]
    assert (cohort.server_round, cohort.seed, cohort.layout) == (4, 8, LAYOUT)
    assert cohort.updates.dtype == torch.float32 and cohort.n_examples.dtype == torch.int64


def held(vector: Tensor) -> ArrayRecord:
    """What an engine with shared memory makes of an update: views of one vector."""
    return held_record(LAYOUT.unflatten(vector))


def test_updates_that_lie_in_one_matrix_become_the_cohort_without_a_copy():
    matrix = torch.randn(3, LAYOUT.dim, generator=stream(0, "matrix"))
    question = Message(RecordDict(), 5, "train")
    updates = [
        to_update(
            client,
            Message(content(arrays=held(matrix[row])), reply_to=question),
            LAYOUT,
            BUFFERS,
            ReplyLimits(),
        )
        for row, client in ((1, 7), (0, 4))
    ]
    cohort = to_cohort(updates, LAYOUT, 1, 0)
    assert cohort.client_ids == (4, 7)
    assert torch.equal(cohort.updates, matrix[:2])
    assert cohort.updates.data_ptr() == matrix.data_ptr()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_held_values_are_screened_like_others(value):
    vector = torch.randn(LAYOUT.dim, generator=stream(0, "matrix"))
    vector[24] = value
    assert (
        reason(content(arrays=held(vector))) == "arrays[b] needs finite values, got NaN or infinity"
    )


def test_held_values_of_another_type_shape_or_name_are_refused():
    good = held(torch.zeros(LAYOUT.dim))
    good["s"] = HeldArray(torch.zeros((), dtype=torch.float64))
    assert reason(content(arrays=good)) == "arrays[s] needs dtype torch.float32, got torch.float64"
    good["s"] = HeldArray(torch.zeros(1))
    assert reason(content(arrays=good)) == "arrays[s] needs shape (), got (1,)"
    del good["s"]
    good["t"] = HeldArray(torch.zeros(()))
    assert "arrays lacks s" in reason(content(arrays=good))


def test_huge_finite_values_are_no_fault():
    vector = torch.full((LAYOUT.dim,), 3e38)
    assert torch.equal(decoded(content(arrays=held(vector))).delta, vector)
