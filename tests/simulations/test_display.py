from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from simulations.display import Display


class Reply:
    def __init__(self, failed: bool = False) -> None:
        self.failed = failed

    def has_error(self) -> bool:
        return self.failed


def event(server_round: int, **changes: Any) -> dict[str, Any]:
    clients = [{"client": n} for n in range(3)]
    plain = {"round": server_round, "clients": clients, "loss": 1.25, "pruned": []}
    return {**plain, "rejected": {}, "kept_global": None, **changes}


EVALUATION = {
    "verification": {"points": [{"alpha": 0.001, "tar": 0.5}, {"alpha": 0.01, "tar": 0.75}]},
    "backdoor": {"recalibrated": [{"alpha": 0.001, "asr": 0.125}, {"alpha": 0.01, "asr": 1.0}]},
}


def shown(*rounds: tuple[dict[str, Any], dict[str, Any] | None], terminal: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=60)
    with Display(console, "demo seed 0", n_rounds=12, n_cohort=3) as display:
        for fact, evaluation in rounds:
            display.round_starts(fact["round"])
            for client in range(3):
                display.reply(client, Reply())
            display.round_ends(fact, evaluation)
    return out.getvalue()


def test_a_file_gets_one_plain_line_a_round() -> None:
    text = shown((event(1), None), (event(2, pruned=[0, 2]), EVALUATION))
    assert "\x1b" not in text
    assert text.splitlines() == [
        "demo seed 0 round  1/12 clients 3 loss 1.250 left 0:00",
        "demo seed 0 round  2/12 clients 3 loss 1.250 TAR@0.01 0.750 ASR@0.001 0.125 "
        "pruned 0,2 left 0:00",
    ]


def test_the_last_line_has_no_time_left_and_no_space_at_its_end() -> None:
    (line,) = shown((event(12), None)).splitlines()
    assert line == "demo seed 0 round 12/12 clients 3 loss 1.250"


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"failed": "embeddings [bold]need"}, "not measured (embeddings [bold]need)"),
        ({"verification": {"points": []}, "backdoor": None}, "loss 1.250 left"),
        ({**EVALUATION, "backdoor": None}, "TAR@0.01 0.750 left"),
    ],
)
def test_what_was_not_measured_is_said_or_left_out(evaluation: dict, words: str) -> None:
    assert words in shown((event(3), evaluation))


def test_dropped_and_failed_clients_and_a_kept_model_have_lines_of_their_own() -> None:
    out = StringIO()
    with Display(Console(file=out), "demo", n_rounds=2, n_cohort=3) as display:
        display.round_starts(1)
        display.reply(7, Reply(failed=True))
        fact = event(1, clients=[], loss=None, kept_global="needed [2] valid replies")
        display.round_ends({**fact, "rejected": {"7": "arrays[fc.weight] needs"}}, None)
    assert out.getvalue().splitlines() == [
        "  client 7 failed in round 1",
        "demo round 1/2 clients 0 left 0:00",
        "  dropped client 7: arrays[fc.weight] needs",
        "  global model kept: needed [2] valid replies",
    ]


def test_the_time_left_is_that_of_recent_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1000.0, *(1000.0 + 40.0 * n for n in (0, 1, 1, 2, 2, 3, 3, 4, 4, 5))])
    monkeypatch.setattr("simulations.display.monotonic", lambda: next(now))
    lines = shown(*((event(n), None) for n in range(1, 7))).splitlines()
    assert lines[0].endswith("left 183:20")  # 11 rounds of 1000 s
    assert lines[1].endswith("left 86:40")  # 10 rounds of (1000 + 40) / 2 s
    assert lines[5].endswith("left 4:00")  # 6 rounds of 40 s: the first is forgotten


def test_a_terminal_gets_a_live_bar_and_the_same_lines() -> None:
    text = shown((event(1), None), (event(2), EVALUATION), terminal=True)
    assert "\x1b[" in text
    assert "starting workers" in text or "round 1/12" in text
    assert "TAR@0.01 0.750" in text and "3/3" in text and "clients" in text


def test_the_bar_counts_clients_and_starts_anew_each_round() -> None:
    console = Console(file=StringIO(), force_terminal=True)
    with Display(console, "demo", n_rounds=4, n_cohort=3) as display:
        assert display._progress is not None
        (task,) = display._progress.tasks
        assert (task.completed, task.total, task.fields["left"]) == (0, 3, "starting workers")
        display.round_starts(1)
        display.reply(0, Reply())
        display.reply(1, Reply(failed=True))
        assert task.completed == 2 and task.description == "demo round 1/4"
        display.round_ends(event(1), None)
        display.round_starts(2)
        assert task.completed == 0 and task.description == "demo round 2/4"
        assert task.fields["left"] == "left 0:00"


def test_the_bar_goes_away_when_the_run_fails() -> None:
    console = Console(file=StringIO(), force_terminal=True)
    display = Display(console, "demo", n_rounds=4, n_cohort=3)
    with display:
        assert display._progress is not None and display._progress.live.is_started
    with pytest.raises(KeyError), display:
        raise KeyError
    assert not display._progress.live.is_started
