"""Whole vertical runs: what is written down, faults, resume, engines."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedface.config import parse_config
from fedface.report.run_folder import RunFolder, RunFolderError
from simulations import vertical_app
from simulations.cli import app as command
from simulations.server import RunFailed
from simulations.vertical_execution import run_vertical
from simulations.vertical_schema import VerticalConfig
from strategies.vertical import VerticalStrategy
from tests.simulations.tiny_vertical import tiny_vertical, tiny_vertical_content

Change = Callable[[RecordDict], None]


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """As in a new process: no party is remembered, and Flower's task has no identity."""
    vertical_app._worker.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, None)
        yield


def ran(config: VerticalConfig, **options: bool) -> RunFolder:
    run_vertical(config, Console(quiet=True), **options)
    return RunFolder(config.folder)


def lasting(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that the run left on the disk."""
    return {
        f"{path.relative_to(folder)}:{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())


def facts(folder: Path) -> list[dict[str, Any]]:
    """What happened, without how long it took."""
    times = ("seconds", "training_seconds")
    return [
        {k: v for k, v in event.items() if k not in times} for event in RunFolder(folder).events()
    ]


def test_a_run_writes_everything_down(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    folder = ran(config)
    rounds, evaluations = folder.events("round"), folder.events("evaluation")
    assert [e["round"] for e in rounds] == [1, 2, 3]
    assert [e["round"] for e in evaluations] == [2, 3]
    for event in rounds:
        n = event["n_steps"] + (event["round"] > 1)  # one exchange more where it was evaluated
        assert event["answered"] == {"top_right": n, "bottom_left": n}
    (alignment,) = folder.events("alignment")
    assert 0.7 * alignment["n_records"] < alignment["n_aligned"] < alignment["n_records"]
    result = folder.result() or {}
    release = config.passive.release
    spent = result["spent"]["top_right"]
    assert spent["most_releases"] == 3
    assert spent["replace_one"] == pytest.approx(release.cost(3, 1e-5).replace_one)  # type: ignore[union-attr]
    assert result["statement"] == release.statement()
    assert result["evaluation"]["enrolled"]["n_people"] == 9
    assert result["evaluation"]["verification"]["n_identities"] == 5
    assert result["n_refused"] == 0
    assert "| tiny | 1 |" in (config.folder / "table.md").read_text()
    ledgers = sorted((config.folder / "sites").rglob("party-round-000003.safetensors"))
    assert len(ledgers) == 2
    assert all(load_file(path)["ledger.counts"].max() == 3 for path in ledgers)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "training": {"n_rounds": 1, "final_epochs": 2, "pretraining": {"epochs": 1}},
            "data": {"split": {"public": 3}},
        },
        {"federation": {"drop_out": 0.4}, "passive": {"scale": {"name": "sphere"}}},
        {
            "federation": {"drop_out": 0.4},
            "training": {"n_rounds": 2, "final_epochs": 3, "final_release": False},
        },
    ],
)
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(
    tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_vertical(tmp_path / "whole", **overrides)
    ran(whole)
    config = tiny_vertical(tmp_path / "killed", **overrides)
    plain = VerticalStrategy.train_round if not overrides.get("training") else None
    name = "train_round" if plain else "train_alone"
    original, calls = getattr(VerticalStrategy, name), []

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        found = original(*arguments, **options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(VerticalStrategy, name, dies)
        with pytest.raises(KeyboardInterrupt):
            ran(config)
    vertical_app._worker.cache_clear()
    ran(config, resume=True)
    assert facts(config.folder) == facts(whole.folder)
    assert equal(lasting(config.folder), lasting(whole.folder))
    vertical_app._worker.cache_clear()
    ran(config, resume=True)  # complete already
    with pytest.raises(RunFolderError, match="found a run"):
        ran(config)
    with pytest.raises(RunFolderError, match="--resume needs the configuration"):
        ran(tiny_vertical(tmp_path / "killed", **{**overrides, "seed": 1}), resume=True)


def faulty(config: VerticalConfig, party: int, change: Change) -> ClientApp:
    """The run's app, whose party ``party`` changes what it releases."""
    honest = vertical_app.vertical_client_app(config)
    made = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        own = int(context.node_config["partition-id"]) == party
        if own and reply.has_content() and "embeddings" in reply.content:
            change(reply.content)
        return reply

    for kind in {*vertical_app._PASSIVE, *vertical_app._ACTIVE}:
        category, _, action = kind.partition(".")
        getattr(made, category)(action)(answer)
    made.query()(answer)
    return made


def sends(values: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(content: RecordDict) -> None:
        z = content["embeddings"]["z"].numpy()
        content["embeddings"] = ArrayRecord({"z": Array(values(z))})

    return change


def unknown(content: RecordDict) -> None:
    rows = content["records"]["rows"].numpy() + 100_000
    content["records"] = ArrayRecord({"rows": Array(rows)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (sends(lambda z: z * np.float32(np.nan)), "finite embeddings"),
        (sends(lambda z: z[:, :3].copy()), "floats of shape"),
        (sends(lambda z: z * np.float32(1000)), "clipped at 1"),
        (unknown, "rows that nobody asked for"),
    ],
)
def test_a_party_that_sends_what_no_honest_one_would_is_refused_by_name_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, why: str
) -> None:
    config = tiny_vertical(tmp_path, training={"n_rounds": 1}, evaluation={"every": None})
    made = faulty(config, 1, change)
    monkeypatch.setattr(vertical_app, "vertical_client_app", lambda own: made)
    folder = ran(config)
    (event,) = folder.events("round")
    ((name, (reason, count)),) = event["refused"].items()
    assert name == "bottom_left" and "party bottom_left" in reason and why in reason
    assert count == event["n_steps"] + 1  # every step and one evaluation
    assert event["answered"] == {"top_right": event["n_steps"] + 1}
    assert (folder.result() or {})["evaluation"]["verification"]["eer"] <= 1


def test_nobody_valid_for_too_long_ends_the_run_and_names_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_vertical(
        tmp_path,
        parties={"passive": ["top_right"]},
        passive={"release": {"n_parties": 1}},
        federation={"max_failed_rounds": 2},
        evaluation={"every": None},
    )
    made = faulty(config, 0, sends(lambda z: z * np.float32(np.nan)))
    monkeypatch.setattr(vertical_app, "vertical_client_app", lambda own: made)
    with pytest.raises(
        RunFailed, match=r"2 rounds in a row .* party top_right needs to send finite"
    ):
        ran(config)
    assert RunFolder(config.folder).checkpoint_rounds() == [1]


def test_the_poisson_binomial_baseline_runs_and_accounts_itself(tmp_path: Path) -> None:
    content = tiny_vertical_content(tmp_path, training={"n_rounds": 2}, evaluation={"every": None})
    content["passive"] |= {
        "scale": {"name": "none"},
        "release": {
            "name": "poisson_binomial",
            "dim": 8,
            "epsilon": 100.0,
            "n_releases": 2,
            "n_parties": 2,
        },
    }
    config = parse_config(content, VerticalConfig, "tiny")
    result = ran(config).result() or {}
    assert result["release"] == "poisson_binomial" and result["n_refused"] == 0
    assert "Poisson binomial mechanism, without a secure sum" in result["statement"]
    for spent in result["spent"].values():
        assert spent["most_releases"] == 2
        assert spent["replace_one"] == pytest.approx(100.0)
        assert 0 < spent["zero_out"] < 100


def test_the_active_party_alone_needs_nobody(tmp_path: Path) -> None:
    folder = ran(tiny_vertical(tmp_path, parties={"passive": []}))
    result = folder.result() or {}
    assert result["statement"] is None and result["spent"] == {}
    assert result["evaluation"]["enrolled"]["n"] > 0


def test_epochs_alone_on_the_last_round_cost_no_release(tmp_path: Path) -> None:
    training = {"n_rounds": 2, "final_epochs": 2, "final_release": False}
    folder = ran(tiny_vertical(tmp_path, training=training, evaluation={"every": None}))
    assert (folder.result() or {})["spent"]["top_right"]["most_releases"] == 2
    assert [e["phase"] for e in folder.events("round")] == ["joint", "joint", "alone", "alone"]
    kept = load_file(folder.path / "checkpoints" / "state-round-000004.safetensors")["kept.0"]
    assert torch.isfinite(kept).all()  # where nothing was received something stands in
    losses = [e["loss"] for e in folder.events("round")]
    assert losses[3] < losses[2]


def test_matching_across_kinds_of_pictures(tmp_path: Path) -> None:
    config = tiny_vertical(
        tmp_path,
        data={"views": {"name": "kinds", "kinds": ["a", "b"]}, "split": {"enrolled_test": 0.0}},
        parties={"active": None, "passive": ["a", "b"]},
        active={"backbone": None, "missing": "zeros"},
        training={"present": "each_alone"},
        evaluation={"matching": {"gallery": "a", "probe": "b"}, "false_accept_rates": [0.2]},
    )
    result = ran(config).result() or {}
    verification = result["evaluation"]["verification"]
    assert verification["n_identities"] == 5 and result["evaluation"]["enrolled"] is None
    assert verification["n_genuine"] <= 5 * 9  # three records each, one picture of each kind


def test_resumed_parties_must_hold_the_same_records(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    folder = ran(config)
    (config.folder / "result.json").unlink()
    for later in (3,):
        for path in (config.folder / "checkpoints").glob(f"*round-{later:06d}*"):
            path.unlink()
    events = [{**e, "digest": "other"} if e["event"] == "alignment" else e for e in folder.events()]
    (config.folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    vertical_app._worker.cache_clear()
    with pytest.raises(RunFailed, match=r"a resumed run needs the .* aligned records"):
        ran(config, resume=True)


def test_the_command_line_runs_checks_and_tables_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    comparison = {"variants": {"afe": {}, "alone": {"parties": {"passive": []}}}}
    path.write_text(yaml.safe_dump(tiny_vertical_content(tmp_path, compare=comparison)))
    checked = CliRunner().invoke(command, ["check", str(path)])
    assert "valid, 2 runs" in checked.stdout
    result = CliRunner().invoke(command, ["run", str(path)])
    assert result.exit_code == 0, result.output
    assert "Per-release local differential privacy" in result.stdout
    table = CliRunner().invoke(command, ["table", str(tmp_path / "tiny")])
    assert table.stdout == (tmp_path / "tiny" / "table.md").read_text()
    (tmp_path / "tiny" / "table.md").unlink()
    again = CliRunner().invoke(command, ["report", str(tmp_path / "tiny")])
    assert again.exit_code == 0 and (tmp_path / "tiny" / "table.md").is_file()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: vertical\nname: x\n")
    refused = CliRunner().invoke(command, ["run", str(wrong)])
    assert refused.exit_code == 2 and "data: Field required" in refused.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_every_engine_gives_the_same_bits_whatever_the_number_of_workers(tmp_path: Path) -> None:
    engines = {
        "in_process": {"name": "in_process"},
        "two": {"name": "resident", "num_cpus": 2},
        "one": {"name": "resident", "num_cpus": 1},
        "flower": {"name": "flower", "num_cpus": 2},
    }
    left: dict[str, dict[str, torch.Tensor]] = {}
    for name, engine in engines.items():
        vertical_app._worker.cache_clear()
        config = tiny_vertical(tmp_path / name, engine=engine)
        ran(config)
        left[name] = lasting(config.folder)
        assert facts(config.folder) == facts(tmp_path / "in_process" / "tiny")
        shutil.rmtree(config.folder / "checkpoints") if name != "in_process" else None
    assert all(equal(found, left["in_process"]) for found in left.values())
