import json
import time

import pytest

from tests.benchmarks.by_path import script

script("measuring")
startup = script("startup")


def test_the_age_of_a_process_grows_with_the_clock():
    before = startup.process_age()
    time.sleep(0.2)
    assert 0.15 < startup.process_age() - before < 5
    assert 0 < before < 24 * 3600


def test_a_run_is_stopped_at_its_first_message(monkeypatch, tmp_path):
    import strategies.robust
    from tests.simulations.tiny import tiny_config

    monkeypatch.setattr(strategies.robust, "exchange", strategies.robust.__dict__["exchange"])
    config = tiny_config(tmp_path / "config")
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(config.to_yaml_dict()))
    before = startup.process_age()
    assert startup.first_message(str(path), "in_process") >= before


def test_the_table_says_what_an_engine_takes_beyond_ray():
    results = {
        "help": [{"seconds": 0.2}],
        "ray": [{"seconds": 4.0}, {"seconds": 5.0}, {"seconds": 3.0}],
        "resident": [{"seconds": 9.0}, {"seconds": 10.0}, {"seconds": 12.0}],
        "flower": [{"error": "died"}],
    }
    rows = startup.table(results).rows
    assert rows[0] == ("help", "0.2", "0.2", "0.2", "-")
    assert rows[2] == ("resident", "10", "9", "12", "6")
    assert rows[3] == ("flower", "died", "-", "-", "-")


@pytest.mark.parametrize("cases", [["help"], ["help", "ray"]])
def test_the_command_asks_for_each_case_so_often(monkeypatch, tmp_path, capsys, cases):
    asked = []

    def run_case(path, case):
        asked.append(case["what"])
        return {**case, "seconds": float(len(asked))}

    monkeypatch.setattr(startup, "run_case", run_case)
    output = tmp_path / "out.json"
    startup.main(["--cases", *cases, "--rounds", "2", "--output", str(output)])
    assert asked == cases * 2
    assert set(json.loads(output.read_text())["results"]) == set(cases)
    assert capsys.readouterr().out.count("\n") == 2 + len(cases)
