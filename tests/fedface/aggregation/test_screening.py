from math import inf, nan

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedface.aggregation.screening import InvalidReply, ReplyLimits, all_finite, screen, shortened
from fedface.parameters import Layout

LAYOUT = Layout.from_shapes({"w": (4, 6), "b": (3,)})
BUFFERS = {
    "bn.running_mean": torch.zeros(2),
    "bn.running_var": torch.ones(2),
    "bn.num_batches_tracked": torch.tensor(0),
}
LIMITS = ReplyLimits(max_examples=1000, max_steps=100)
HUGE = pytest.param(-(10**5000), id="more digits than Python writes")


def reply(**changes: dict) -> dict:
    """An honest reply with entries of its parts changed; an entry of None is taken out."""
    parts = {
        "arrays": {"b": np.full(3, 2, np.float32), "w": np.ones((4, 6), np.float32)},
        "buffers": {name: value.numpy() for name, value in BUFFERS.items()},
        "metrics": {"num-examples": 20, "num-steps": 5, "loss": 1.5},
    }
    for part, entries in changes.items():
        merged = {**parts[part], **entries}
        parts[part] = {name: value for name, value in merged.items() if value is not None}
    return parts


def screened(parts: dict, limits: ReplyLimits = LIMITS):
    return screen(3, **parts, layout=LAYOUT, expected_buffers=BUFFERS, limits=limits)


def reason(**changes: dict) -> str:
    with pytest.raises(InvalidReply) as caught:
        screened(reply(**changes))
    return str(caught.value)


def test_an_honest_reply_becomes_an_update_in_the_layouts_order():
    update = screened(reply())
    assert update.client == 3
    assert update.delta.tolist() == [1.0] * 24 + [2.0] * 3
    assert update.delta.dtype == torch.float32
    assert (update.n_examples, update.n_steps, update.loss) == (20, 5, 1.5)
    assert all(torch.equal(update.buffers[name], value) for name, value in BUFFERS.items())
    assert update.buffers["bn.num_batches_tracked"].dtype == torch.int64


def test_an_update_shares_no_memory_with_the_reply():
    parts = reply()
    update = screened(parts)
    parts["arrays"]["b"][:] = 9
    parts["buffers"]["bn.running_mean"][:] = 9
    assert update.delta[-1] == 2 and update.buffers["bn.running_mean"][0] == 0


def array_with(value: float) -> np.ndarray:
    array = np.ones((4, 6), np.float32)
    array[1, 2] = value
    return array


def test_finite_values_whose_sum_overflows_are_accepted():
    parts = reply()
    parts["arrays"]["w"][:] = np.float32(3e38)
    assert screened(parts).delta.max() == np.float32(3e38)


@pytest.mark.parametrize(
    "values", [[inf, -inf, 1.0], [3e38, 3e38, nan], [-3e38, -3e38, -inf], [0.0, nan, 0.0]]
)
def test_what_is_not_finite_is_found_whatever_the_sum(values):
    assert not all_finite(torch.tensor(values))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"w": array_with(nan)}, "arrays[w] needs finite values"),
        ({"w": array_with(inf)}, "arrays[w] needs finite values"),
        ({"w": array_with(-inf)}, "arrays[w] needs finite values"),
        ({"w": None}, "arrays lacks w (1 missing)"),
        ({"w": None, "b": None}, "arrays lacks b, w (2 missing)"),
        ({"head": np.ones(1, np.float32)}, "arrays has unknown head (1 extra)"),
        ({"w": np.ones((4, 7), np.float32)}, "arrays[w] needs shape (4, 6), got (4, 7)"),
        ({"w": np.ones((1, 6), np.float32)}, "arrays[w] needs shape (4, 6), got (1, 6)"),
        ({"w": np.ones((6,), np.float32)}, "arrays[w] needs shape (4, 6), got (6,)"),
        ({"w": np.ones((), np.float32)}, "arrays[w] needs shape (4, 6), got ()"),
        ({"w": np.ones((6, 4), np.float32)}, "arrays[w] needs shape (4, 6), got (6, 4)"),
        ({"w": np.ones(24, np.float32)}, "arrays[w] needs shape (4, 6), got (24,)"),
        ({"w": np.ones((4, 6))}, "arrays[w] needs dtype float32, got float64"),
        ({"w": np.ones((4, 6), np.float16)}, "arrays[w] needs dtype float32, got float16"),
        ({"w": np.ones((4, 6), np.int32)}, "arrays[w] needs dtype float32, got int32"),
        ({"w": np.ones((4, 6), ">f4")}, "arrays[w] needs dtype float32, got >f4"),
        ({"w": np.ones((4, 6), object)}, "arrays[w] needs dtype float32, got object"),
    ],
)
def test_malformed_arrays_are_refused_by_name(changes, why):
    assert reason(arrays=changes).startswith(why)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bn.running_mean": np.array([0, nan], np.float32)}, "buffers[bn.running_mean] needs fin"),
        ({"bn.running_mean": None}, "buffers lacks bn.running_mean"),
        ({"x": np.ones(1)}, "buffers has unknown x"),
        ({"bn.running_mean": np.zeros(1, np.float32)}, "buffers[bn.running_mean] needs shape (2,)"),
        ({"bn.running_var": np.zeros(2)}, "buffers[bn.running_var] needs dtype float32"),
        (
            {"bn.running_var": np.array([1, -0.5], np.float32)},
            "buffers[bn.running_var] needs variances >= 0, got -0.5",
        ),
        ({"bn.num_batches_tracked": np.array(1.0)}, "buffers[bn.num_batches_tracked] needs dtype"),
        ({"bn.num_batches_tracked": np.array([1])}, "buffers[bn.num_batches_tracked] needs shape"),
    ],
)
def test_malformed_buffers_are_refused_by_name(changes, why):
    assert reason(buffers=changes).startswith(why)


@pytest.mark.parametrize("value", [-1, 101, 2**63 - 1, -(2**63)])
def test_a_counter_that_ran_back_or_too_far_is_refused(value):
    why = reason(buffers={"bn.num_batches_tracked": np.array(value)})
    assert why == f"buffers[bn.num_batches_tracked] needs 0 and at most 100 more, got {value}"


@pytest.mark.parametrize("value", [0, 1, 100])
def test_a_counter_that_went_on_is_believed(value):
    counter = {"bn.num_batches_tracked": np.array(value)}
    assert screened(reply(buffers=counter)).buffers["bn.num_batches_tracked"] == value


@pytest.mark.parametrize("name", ["num-examples", "num-steps"])
@pytest.mark.parametrize("value", [-89, 0, 10**12, HUGE, 20.0, nan, True, "20", [20], None])
def test_absurd_counts_are_refused_by_name(name, value):
    why = reason(metrics={name: value})
    assert why.startswith(f"metrics[{name}] needs an integer in 1..")
    assert len(why) < 200


@pytest.mark.parametrize("value", [nan, inf, -inf, 10**400, HUGE, "1", True, [1.0], None])
def test_a_loss_that_is_no_finite_number_is_refused(value):
    why = reason(metrics={"loss": value})
    assert why.startswith("metrics[loss] needs a finite number, got ")
    assert len(why) < 200


def test_a_reply_without_metrics_is_refused():
    empty = dict.fromkeys(("num-examples", "num-steps", "loss"))
    assert reason(metrics=empty) == "metrics[num-examples] needs an integer in 1..1000, got None"


@pytest.mark.parametrize(("name", "limit"), [("num-examples", 1000), ("num-steps", 100)])
def test_the_limit_itself_is_believed_and_one_more_is_not(name, limit):
    screened(reply(metrics={name: limit}))
    screened(reply(metrics={name: 1}))
    assert f"in 1..{limit}, got {limit + 1}" in reason(metrics={name: limit + 1})


def test_limits_need_to_be_positive():
    with pytest.raises(ValidationError):
        ReplyLimits(max_examples=0)


def test_names_of_a_clients_choice_stay_short_in_the_message():
    flood = {f"{'x' * 10_000}\n{i}": np.ones(1) for i in range(50)}
    why = reason(arrays=flood)
    assert len(why) < 200 and "\n" not in why and "(50 extra)" in why


@pytest.mark.parametrize("length", [0, 1, 119, 120])
def test_a_short_text_stays_as_it_is(length):
    assert shortened("x" * length) == "x" * length


@pytest.mark.parametrize("text", ["x" * 121, "x " * 500, " " * 10_000 + "x", "\n\n" * 999])
def test_a_long_text_is_cut_to_one_line(text):
    assert len(shortened(text)) <= 120 and "\n" not in shortened(text)
    assert shortened(text).endswith("...")


def test_line_breaks_become_spaces():
    assert shortened("a\nb\t c") == "a b c"


def test_shortened_texts_do_not_steer_a_terminal():
    shown = shortened("a\x1b[2J\x1b]0;owned\x07b\u202ec")
    assert shown.isprintable() and shown == "a [2J ]0;owned b c"
