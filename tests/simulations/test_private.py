"""Private runs from the configuration to the model card."""

from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedface.config import ConfigError
from fedface.privacy.accounting import Steps, epsilon
from fedface.report.run_folder import RunFolder
from simulations import app
from simulations.execution import run
from simulations.schema import RunConfig
from simulations.server import RunFailed
from tests.simulations.in_process import in_process
from tests.simulations.tiny import tiny_config

IMAGE = {"unit": "image", "sample_rate": 0.3, "batch_size": 6, "delta": 1e-3, "accountant": "rdp"}
SUBJECT = {**IMAGE, "unit": "subject", "batch_size": 2, "images_per_subject": 3}
SITE = {"unit": "site", "delta": 0.01, "clip": 0.5}
HONEST: dict[str, Any] = {"attack": None}
UNIFORM = {"aggregator": {"name": "mean", "weighting": "uniform"}}


def started(config: RunConfig, **options: bool) -> str:
    out = StringIO()
    app._worker.cache_clear()
    with in_process():
        run(config, Console(file=out, width=250), **options)
    return out.getvalue()


def epsilons(folder: Path) -> list[float]:
    return [event["privacy"]["epsilon"] for event in RunFolder(folder).events("round")]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"privacy": {**IMAGE, "target_epsilon": 8.0}}, marks=pytest.mark.slow),
        pytest.param(
            {"privacy": {**SUBJECT, "target_epsilon": 8.0}, "aggregator": {"name": "ariba"}},
            marks=[pytest.mark.slow, pytest.mark.ci],
        ),
        {"privacy": {**SITE, "target_epsilon": 8.0}, "aggregator": {"name": "median"}},
        {"privacy": {**SITE, "target_epsilon": 8.0, "noise_at": "server"}, **UNIFORM},
    ],
    ids=["image", "subject-ariba", "site-median", "site-server"],
)
def test_a_run_spends_its_budget_and_says_so(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, **overrides)
    out = started(config)
    spent = epsilons(config.folder)
    assert spent == sorted(spent)
    assert 7.5 < spent[-1] <= 8.0
    unit = config.privacy.unit
    assert f"epsilon {spent[-1]:.3g} ({unit}, " in out
    card = (config.folder / "model_card.md").read_text()
    for text in (
        f"Differential privacy of the whole training for one {unit}: (epsilon {spent[-1]:.3g}, ",
        f"accountant {config.privacy.accountant}",
        config.privacy.sampling,
        f"Trusted: {config.privacy.trust}",
        "hides nothing from who knows it",
    ):
        assert text in card
    assert "No differential privacy" not in card
    assert config.privacy.trust in unescape((config.folder / "report.html").read_text())
    rounds = RunFolder(config.folder).events("round")
    assert all(event["loss"] is None for event in rounds)


@pytest.mark.slow
def test_without_noise_no_privacy_is_claimed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **HONEST, privacy={**IMAGE, "noise_multiplier": 0.0})
    assert "epsilon infinite (image: no noise)" in started(config)
    card = (config.folder / "model_card.md").read_text()
    assert "No differential privacy" in card
    assert "clipped but gets no noise" in card


def test_a_run_without_privacy_says_nothing_of_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **HONEST, federation={"n_rounds": 1})
    started(config)
    assert "privacy" not in RunFolder(config.folder).events("round")[0]
    assert not list(config.folder.rglob("*ledger*"))


@pytest.mark.parametrize("noise_at", ["site", "server"])
def test_a_run_ends_in_time_when_the_budget_is_spent(tmp_path: Path, noise_at: str) -> None:
    privacy = {**SITE, "noise_multiplier": 1.0, "target_epsilon": 4.5, "noise_at": noise_at}
    config = tiny_config(tmp_path, **HONEST, **UNIFORM, privacy=privacy)
    out = started(config)
    spent = epsilons(config.folder)
    assert len(spent) == 2
    assert spent[-1] <= 4.5
    assert "stopped before round 3" in out
    assert RunFolder(config.folder).events("evaluation")[-1]["round"] == 2
    assert (config.folder / "model.safetensors").exists()


def test_accounts_that_outlive_runs_add_up_and_refuse_the_third_run(tmp_path: Path) -> None:
    six_rounds = epsilon([Steps(1.0, 1.0, 6)], 0.01, "gdp")
    privacy = {**SITE, "noise_multiplier": 1.0, "target_epsilon": six_rounds}
    privacy["ledger"] = str(tmp_path / "accounts")
    first = tiny_config(tmp_path / "a", **HONEST, privacy=privacy)
    second = tiny_config(tmp_path / "b", **HONEST, privacy=privacy)
    started(first)
    started(second)
    assert epsilons(second.folder)[0] > epsilons(first.folder)[-1]
    third = tiny_config(tmp_path / "c", **HONEST, privacy=privacy)
    with pytest.raises(ConfigError, match=r"privacy\.ledger .*: needed room at 2 sites, found 4"):
        started(third)


@pytest.mark.slow
def test_a_resumed_run_continues_its_accounts_and_gives_the_same_model(tmp_path: Path) -> None:
    privacy = {**IMAGE, "target_epsilon": 8.0}
    whole = tiny_config(tmp_path / "whole", **HONEST, privacy=privacy)
    started(whole)
    broken = tiny_config(tmp_path / "broken", **HONEST, privacy=privacy)
    started(broken)
    folder = RunFolder(broken.folder)
    (broken.folder / "result.json").unlink()
    last = sorted(broken.folder.glob("checkpoints/*round-000003*"))
    for path in last:
        path.unlink()
    if not list(broken.folder.glob("checkpoints/round-000002*")):
        pytest.skip("the checkpoint of the round before is not kept")
    ledgers = {p: p.read_bytes() for p in broken.folder.rglob("privacy-ledger.jsonl")}
    assert len(ledgers) == 4
    started(broken, resume=True)
    assert {p: p.read_bytes() for p in ledgers} == ledgers  # round 3 was paid, and is sent again
    model = "checkpoints/round-000003.safetensors"
    assert (folder.path / model).read_bytes() == (whole.folder / model).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"privacy": {**IMAGE, "target_epsilon": 8.0}, "evaluation": {"local": True}},
            r"privacy needs evaluation\.local: false",
        ),
        (
            {"privacy": {**SITE, "target_epsilon": 8.0, "noise_at": "server"}},
            r"noise_at: server needs aggregator \{name: mean, weighting: uniform\}",
        ),
        (
            {
                "privacy": {**SITE, "target_epsilon": 8.0, "noise_at": "server"},
                "aggregator": {"name": "median"},
            },
            r"got median \(noise_at: site goes with every aggregator\)",
        ),
        (
            {
                "privacy": {**IMAGE, "target_epsilon": 8.0},
                "training": {"max_gradient_norm": 1.0},
            },
            r"needs training\.max_gradient_norm: null",
        ),
        (
            {"privacy": {**IMAGE, "target_epsilon": 8.0}, "model": {"compile": True}},
            r"needs model\.compile: false",
        ),
        (
            {"privacy": {**SUBJECT, "target_epsilon": 8.0, "images_per_subject": 7}},
            r"images_per_subject needs to be <= training\.batch_size=6, got 7",
        ),
    ],
)
def test_settings_that_break_the_promise_are_refused_on_reading(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {
                "privacy": {**IMAGE, "noise_multiplier": 1.0},
                "model": {"backbone": {"norm": "batch"}},
            },
            r"without batch normalisation.*layers\.0\.1.*norm: group",
        ),
        (
            {"privacy": {**IMAGE, "noise_multiplier": 1.0, "delta": 0.06}},
            r"privacy\.delta needs to be below 1 / 18 \(images of the largest site\)",
        ),
        (
            {"privacy": {**SITE, "noise_multiplier": 1.0, "delta": 0.25}},
            r"privacy\.delta needs to be below 1 / 4 \(sites\), got 0\.25",
        ),
        (
            {
                "privacy": {**SUBJECT, "noise_multiplier": 1.0},
                "data": {"partition": {"name": "iid"}},
            },
            r"privacy\.unit subject needs all images of a person at one site",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_the_run(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    config = tiny_config(tmp_path, **HONEST, **overrides)
    with pytest.raises(ConfigError, match=message):
        started(config)
    assert not config.folder.exists()


def test_a_budget_too_small_for_one_round_fails_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    privacy = {**SITE, "noise_multiplier": 1.0, "target_epsilon": 0.5}
    with pytest.raises((ConfigError, RunFailed), match="no room for another round"):
        started(tiny_config(tmp_path, **HONEST, privacy=privacy))


def test_a_run_can_start_from_another_ones_model(tmp_path: Path) -> None:
    first = tiny_config(tmp_path / "first", **HONEST, federation={"n_rounds": 1})
    started(first)
    start = {"model": {"start": str(first.folder)}}
    second = tiny_config(tmp_path / "second", **HONEST, **start, federation={"n_rounds": 1})
    from fedface.report.export import load_model
    from simulations.build import build_backbone

    weights = load_model(first.folder).state_dict()
    begun = build_backbone(second, 16).state_dict()
    assert all((weights[name] == value).all() for name, value in begun.items())
    with pytest.raises(ValueError, match=r"model\.start .*found another"):
        build_backbone(second, 32)
