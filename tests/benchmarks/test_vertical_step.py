from pathlib import Path

import pytest

from fedface.config import parse_config
from simulations.vertical_schema import VerticalConfig
from tests.benchmarks.by_path import script

script("measuring")
step = script("vertical_step")

CASE = {
    "engine": "in_process",
    "n_parties": 2,
    "steps_per_message": 1,
    "batch": 8,
    "size": 16,
    "n_people": 11,
    "n_rounds": 2,
    "n_workers": 1,
    "active_at": "server",
}


@pytest.mark.parametrize("engine", ["in_process", "resident", "flower", "plain_loop"])
def test_every_case_is_a_valid_run(engine: str) -> None:
    content = step.content({**CASE, "engine": engine, "active_at": "client"}, Path("out"))
    config = parse_config(content, VerticalConfig, "case")
    assert config.active.at == "client"
    assert len(config.parties.passive) == 2
    assert config.engine.name == ("in_process" if engine == "plain_loop" else engine)


def test_plain_loop_and_messages_are_measured() -> None:
    for engine in ("plain_loop", "in_process"):
        figures = step.measure({**CASE, "engine": engine})
        assert len(figures["rounds"]) == 2 and figures["step_seconds"] > 0


def test_ratios_are_to_the_plain_loop_of_as_many_parties() -> None:
    results = [
        {**CASE, "engine": "plain_loop", "n_parties": 1, "step_seconds": 0.01},
        {**CASE, "engine": "plain_loop", "n_parties": 2, "step_seconds": 0.02},
        {**CASE, "engine": "resident", "n_parties": 1, "step_seconds": 0.04},
        {**CASE, "engine": "resident", "n_parties": 2, "step_seconds": 0.03},
        {**CASE, "engine": "flower", "error": "took too long"},
    ]
    assert [r["ratio"] for r in step.ratios(results)] == [1, 1, 4, 1.5]
    rows = step.table(results).rows
    assert rows[2][-2:] == ("40.0", "4.00") and rows[4][-2:] == ("took too long", "-")
