"""Random replies and configurations: nothing crashes the server, nothing malformed is accepted.

Each example starts from an honest reply (or a valid file) and breaks it a few times, or not at all.
What is accepted is judged again by the definition, written down here a second time.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedface.aggregation import Mean
from fedface.aggregation.screening import ClientUpdate, InvalidReply, ReplyLimits
from fedface.config import ConfigError
from fedface.parameters import Layout
from simulations.schema import RunConfig, load_run
from strategies.records import Ticket, to_update
from strategies.robust import RobustStrategy
from tests.simulations.tiny import tiny_content

LAYOUT = Layout.from_shapes({"w": (4, 6), "b": (3,), "s": ()})
BUFFERS = {
    "bn.running_mean": torch.tensor([0.5, -1.0]),
    "bn.running_var": torch.ones(2),
    "bn.num_batches_tracked": torch.tensor(4),
}
LIMITS = ReplyLimits(max_examples=1000, max_steps=100)
TICKET = Ticket(7, "00c0ffee00c0ffee")
QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
DETONATED: list[str] = []


class Bomb:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return DETONATED.append, ("unpickled",)


@pytest.fixture(scope="module", autouse=True)
def identity() -> Any:
    """Flower's task identity, for a whole module of examples."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


# ---- replies: an honest one, and what can be done to it


def honest() -> dict[str, Any]:
    """What an honest reply consists of, in a form that is easily broken."""
    return {
        "error": None,
        "group_id": TICKET.group_id,
        "records": {
            "arrays": {
                slot.name: Array(np.full(slot.shape, 0.25, np.float32)) for slot in LAYOUT.slots
            },
            "buffers": {name: Array(value.numpy()) for name, value in BUFFERS.items()},
            "metrics": {"num-examples": 20, "num-steps": 3, "loss": 1.5},
        },
    }


def message_of(reply: Mapping[str, Any]) -> Message:
    """The broken reply as Flower would hand it over."""
    question = Message(RecordDict(), 5, "train", group_id=str(reply["group_id"]))
    if reply["error"] is not None:
        return Message(Error(*reply["error"]), reply_to=question)
    content = RecordDict()
    for name, record in reply["records"].items():
        if name == "metrics" or (record and not isinstance(next(iter(record.values())), Array)):
            content[name] = metric_record(record)
        else:
            arrays = ArrayRecord()
            for key, array in record.items():
                arrays[key] = array
            content[name] = arrays
    for name in reply.get("config", ()):
        content[name] = ConfigRecord({"a": b"\x00" * 9})
    return Message(content, reply_to=question)


def metric_record(record: Mapping[str, Any]) -> MetricRecord:
    """The metrics that Flower takes; it refuses texts, bools and mixed lists itself."""
    metrics = MetricRecord()
    for key, value in record.items():
        try:
            metrics[key] = value
        except (TypeError, ValueError):
            continue
    return metrics


names = st.one_of(
    st.sampled_from(["w", "b", "s", "bn.running_mean", "arrays", "head.weight", ""]),
    st.text(max_size=20),
    st.integers(1, 3).map(lambda n: "x" * 10**n),
)
dtypes = st.one_of(
    npst.floating_dtypes(),
    npst.integer_dtypes(),
    npst.boolean_dtypes(),
    npst.complex_number_dtypes(),
)
any_array = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, max_side=6))
shaped = st.sampled_from([(4, 6), (3,), (), (2,), (1, 6), (6, 4), (24,)]).flatmap(
    lambda shape: npst.arrays(
        np.float32,
        shape,
        elements=st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 0.0]),
    )
)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones((4, 6), np.float32))
    return buffer.getvalue()


HEADER = b"\x93NUMPY\x01\x00"
SHAPES = ("(4, 6)", "(-4, -6)", "(2147483648, 8)", "(4, 6", "()", "(4L, 6)", "(" + "9" * 400 + ",)")
headers = st.tuples(
    st.sampled_from(["<f4", ">f4", "|O", "<f8", "|S96", "<f4'+'", "f4", "<U24", "<m8"]),
    st.sampled_from(["False", "True", "None", "0"]),
    st.sampled_from(SHAPES),
    st.sampled_from(["", " ", "#", "\x00", ", 'x': 1"]),
).map(
    lambda h: f"{{'descr': '{h[0]}', 'fortran_order': {h[1]}, 'shape': {h[2]}, }}{h[3]}\n".encode()
)
evil_bytes = st.one_of(
    st.binary(max_size=300),
    st.sampled_from(
        [
            npz(),
            npy(np.array([Bomb()], dtype=object), allow_pickle=True),
            pickle.dumps(Bomb()),
            b"",
            b"\x93NUMPY",
            bytes(5000),
        ]
    ),
    headers.map(lambda text: HEADER + len(text).to_bytes(2, "little") + text + bytes(96)),
    st.tuples(any_array.map(npy), st.integers(0, 400), st.integers(0, 255)).map(
        lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :]
    ),
    st.tuples(any_array.map(npy), st.integers(0, 300)).map(lambda t: t[0][: t[1]]),
)
arrays = st.one_of(
    any_array.map(Array),
    shaped.map(Array),
    st.builds(
        Array,
        st.sampled_from(["float32", "float64", "object", "w" * 50]),
        st.sampled_from([(4, 6), (3,), (), (10**9,), (-1,)]),
        st.sampled_from(["numpy.ndarray", "torch", "pickle", ""]),
        evil_bytes,
    ),
)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, 1, -1, 1000, 1001, 2**63, -(10**50), True, 10**5000]),
    st.floats(),
    st.lists(st.integers(), max_size=3),
    st.lists(st.floats(), max_size=3),
)


@st.composite
def broken(draw: Any) -> dict[str, Any]:
    """An honest reply after up to three changes."""
    reply = honest()
    for _ in range(draw(st.integers(0, 3))):
        records = reply["records"]
        field = draw(st.sampled_from(["arrays", "buffers", "metrics"]))
        kind = draw(st.sampled_from(KINDS))
        if kind == "value" and field in records:
            keys = sorted(records[field]) or [""]
            key = draw(st.sampled_from(keys) | names)
            records[field][key] = draw(numbers if field == "metrics" else arrays)
        elif kind == "drop value" and records.get(field):
            del records[field][draw(st.sampled_from(sorted(records[field])))]
        elif kind == "rename" and records.get(field):
            old = draw(st.sampled_from(sorted(records[field])))
            records[field][draw(names)] = records[field].pop(old)
        elif kind == "drop record":
            records.pop(field, None)
        elif kind == "other record":
            records[draw(names)] = {draw(names): draw(arrays | numbers)}
        elif kind == "type of record":
            records[field] = {draw(names): draw(numbers if field != "metrics" else arrays)}
        elif kind == "config record":
            reply["config"] = [draw(names | st.just("arrays"))]
        elif kind == "error":
            reply["error"] = (draw(st.integers(0, 300)), draw(st.text(max_size=3000)))
        elif kind == "ticket":
            reply["group_id"] = draw(
                st.sampled_from(["6.00c0ffee00c0ffee", "7.dead", "7", "", "7." + "9" * 999])
                | st.text(max_size=30)
            )
    return reply


KINDS = (
    "value",
    "value",
    "value",
    "drop value",
    "rename",
    "drop record",
    "other record",
    "type of record",
    "config record",
    "error",
    "ticket",
)


# ---- the definition, a second time


def read(array: Array) -> np.ndarray:
    """What numpy itself reads from the bytes."""
    return np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False)


def assert_well_formed(message: Message, update: ClientUpdate) -> None:
    """Whatever was accepted is an honest reply in every respect, and was read as it is."""
    assert message.has_content() and not message.has_error()
    assert message.metadata.group_id == TICKET.group_id
    content = message.content
    assert {"arrays", "metrics"} <= set(content) <= {"arrays", "buffers", "metrics"}
    for field, needed in (
        ("arrays", {s.name: (s.shape, "float32") for s in LAYOUT.slots}),
        ("buffers", {n: (tuple(v.shape), str(v.numpy().dtype)) for n, v in BUFFERS.items()}),
    ):
        record = content[field]
        assert isinstance(record, ArrayRecord) and set(record) == set(needed)
        for name, (shape, dtype) in needed.items():
            values = read(record[name])
            assert values.shape == shape and str(values.dtype) == dtype
            assert np.isfinite(values).all()
            own = (
                update.buffers[name].numpy()
                if field == "buffers"
                else LAYOUT.unflatten(update.delta)[name].numpy()
            )
            assert np.array_equal(own, values)
    assert (read(content["buffers"]["bn.running_var"]) >= 0).all()
    assert 4 <= read(content["buffers"]["bn.num_batches_tracked"]) <= 104
    metrics = content["metrics"]
    for name, limit in (("num-examples", 1000), ("num-steps", 100)):
        assert type(metrics[name]) is int and 1 <= metrics[name] <= limit
    assert type(metrics["loss"]) in (int, float) and np.isfinite(float(metrics["loss"]))


def assert_screened(reply: dict[str, Any]) -> None:
    """Screening accepts what is well-formed, refuses the rest in one short line, and no more."""
    message = message_of(reply)
    try:
        update = to_update(3, message, LAYOUT, BUFFERS, LIMITS, TICKET)
    except InvalidReply as refused:
        why = str(refused)
        assert why and len(why) < 500 and why.isprintable(), why
    else:
        assert_well_formed(message, update)
    assert DETONATED == []


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(broken())
def test_no_reply_crashes_screening_and_none_that_is_malformed_passes(reply: dict) -> None:
    assert_screened(reply)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=QUIET)
@given(broken())
def test_ten_thousand_replies(reply: dict) -> None:
    assert_screened(reply)


def test_the_honest_reply_passes() -> None:
    """Else all of the above would be empty."""
    message = message_of(honest())
    assert_well_formed(message, to_update(3, message, LAYOUT, BUFFERS, LIMITS, TICKET))


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(st.lists(broken(), min_size=1, max_size=2))
def test_a_round_survives_any_replies_and_counts_every_client(replies: list[dict]) -> None:
    """Two honest clients beside; who is not in the model is named."""
    subject = RobustStrategy(
        Mean(), LAYOUT, BUFFERS, seed=0, n_clients=4, min_valid_replies=1, limits=LIMITS
    )
    subject._cohort, subject._ticket = (0, 1, 2, 3), TICKET
    by_client = {0: message_of(honest()), 1: message_of(honest())}
    by_client |= {2 + i: message_of(reply) for i, reply in enumerate(replies)}
    weights = {slot.name: torch.zeros(slot.shape) for slot in LAYOUT.slots}
    aggregation, record = subject._step(7, by_client, weights)
    valid = {client.client for client in record.clients}
    if record.kept_global is None:
        assert aggregation is not None and bool(aggregation.update.isfinite().all())
        assert {0, 1} <= valid and valid | set(record.rejected) == {0, 1, 2, 3}
        assert all(b.isfinite().all() for b in subject.buffers.values() if b.is_floating_point())
    else:
        assert valid == set()


# ---- configurations

CONFIG = tiny_content(Path("runs"))
TEXT = yaml.safe_dump(CONFIG)

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([-1, 0, 10**50, "nan", ".inf", "${HOME}", "${NOT_SET_ANYWHERE}", [], {}]),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every path in a nested mapping."""
    if not isinstance(content, dict):
        return [path]
    return [path, *(p for key, value in content.items() for p in places(value, (*path, key)))]


def changed(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not path:
        return content
    return {
        **content,
        path[0]: value if len(path) == 1 else changed(dict(content[path[0]]), path[1:], value),
    }


def assert_loads_or_says_why(text: str, folder: Path) -> RunConfig | None:
    """Returns the configuration, or None if it was refused by a ConfigError of readable lines."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_run(path)
    except ConfigError as refused:
        why = str(refused)
    else:
        why = ""
    if why:
        assert why.startswith(str(path))
        return None
    federation = config.federation
    cohort = federation.clients_per_round or federation.n_clients
    assert 1 <= federation.min_valid_replies <= cohort <= federation.n_clients
    assert federation.timeout > 0 and federation.n_rounds >= 1
    assert config.training.batch_size >= 1 and config.seed >= 0
    assert RunConfig.model_validate(config.to_yaml_dict()) == config
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


value_changes = st.tuples(st.sampled_from(places(CONFIG)), leaves)
text_changes = st.lists(
    st.tuples(
        st.integers(0, len(TEXT)),
        st.integers(0, 30),
        st.text(max_size=8)
        | st.sampled_from(["\n", ":", "- ", "{", "[", "&a ", "*a", "? ", "<<: ", "\t", "!!python"]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(change=value_changes)
def test_any_value_at_any_place_loads_or_is_refused(change: Any, folder: Path) -> None:
    assert_loads_or_says_why(yaml.safe_dump(changed(CONFIG, *change)), folder)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(changes=text_changes)
def test_any_text_loads_or_is_refused(changes: Any, folder: Path) -> None:
    assert_loads_or_says_why(edited(changes), folder)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=QUIET)
@given(value=value_changes, text=text_changes)
def test_thousands_of_configurations(value: Any, text: Any, folder: Path) -> None:
    assert_loads_or_says_why(yaml.safe_dump(changed(CONFIG, *value)), folder)
    assert_loads_or_says_why(edited(text), folder)


def edited(changes: list[tuple[int, int, str]]) -> str:
    """The file with pieces of it replaced by other characters."""
    text = TEXT
    for start, length, piece in changes:
        text = text[:start] + piece + text[start + length :]
    return text


mappings = sorted({path[:-1] for path in places(CONFIG) if path})


@pytest.mark.parametrize("path", mappings, ids=".".join)
def test_an_unknown_key_is_refused_everywhere(path: tuple[str, ...], folder: Path) -> None:
    text = yaml.safe_dump(changed(CONFIG, (*path, "no_such_setting"), 1))
    assert assert_loads_or_says_why(text, folder) is None


NASTY = {
    "nested too deep": "a: " + "[" * 5000,
    "a list that holds itself": "name: &a [*a]",
    "a mapping that holds itself": "data: &a {b: *a}",
    "aliases without end": "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(12)
    ),
    "tags": "name: !!python/object/apply:os.system ['true']",
    "a number of too many digits": f"seed: {'9' * 5000}",
    "a date that is none": "name: 2026-99-99",
    "nothing": "",
    "a null byte": "name: a\0b",
    "half a character": "name: \udc80",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_nasty_files_are_refused(text: str, folder: Path) -> None:
    assert assert_loads_or_says_why(text, folder) is None


def test_the_valid_file_loads(folder: Path) -> None:
    assert assert_loads_or_says_why(TEXT, folder) is not None
