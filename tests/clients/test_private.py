"""A private site: what leaves it, what is written down first, and what a kill changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context

from clients import private
from clients.face import FaceClient
from clients.private import LEDGER, SiteAccount
from fedface.privacy.accounting import Steps, epsilon
from fedface.privacy.release import BudgetSpent
from fedface.privacy.units import AnyPrivacy, ImagePrivacy, SitePrivacy, SubjectPrivacy
from fedface.training.local import Hooks
from tests.clients.sites import TRAINING, context, message, same_reply, site, tensors

pytestmark = pytest.mark.usefixtures("flower_identity")

IMAGE = ImagePrivacy(noise_multiplier=2.0, sample_rate=0.5, batch_size=7, delta=1e-3)
SUBJECT = SubjectPrivacy(
    noise_multiplier=2.0, sample_rate=0.5, batch_size=3, delta=1e-3, images_per_subject=2
)
SITE = SitePrivacy(noise_multiplier=2.0, delta=1e-3, clip=0.1)


class Killed(BaseException):
    """Stands for whatever ends a process: nothing in the product catches it."""


def private_site(privacy: AnyPrivacy, folder: Path | None = None, run: str = "run") -> FaceClient:
    client = site(folder=folder, norm="group")
    account = SiteAccount(
        privacy=privacy,
        client=0,
        seed=0,
        n_rounds=10,
        training=TRAINING,
        run=run,
        ledger=None if folder is None else folder / "ledger.jsonl",
        released=None if folder is None else folder / "released",
    )
    return replace(client, private=account)


def ask(client: FaceClient, server_round: int, memory: Context):
    return client.train(message(server_round, norm="group"), memory)


def charges(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("privacy", [IMAGE, SUBJECT, SITE], ids=lambda p: p.unit)
def test_a_reply_says_public_numbers_alone_and_what_was_spent(
    privacy: AnyPrivacy, tmp_path: Path
) -> None:
    client, memory = private_site(privacy, tmp_path), context()
    replies = [ask(client, server_round, memory) for server_round in (1, 2)]
    metrics = dict(replies[1].content.metric_records["metrics"])
    steps = privacy.cost(10, TRAINING.epochs)
    spent = epsilon([steps] * 2, 1e-3, privacy.accountant)
    assert metrics.pop("epsilon") == spent
    nominal = {"image": 14, "subject": 6, "site": 1}[privacy.unit]
    expected = {"num-examples": nominal, "num-steps": steps.n_steps, "loss": 0.0, "delta": 1e-3}
    assert metrics == expected
    assert len(replies[1].content.array_records["buffers"]) == 0


def test_what_leaves_does_not_depend_on_how_many_images_there_are() -> None:
    client = private_site(IMAGE)
    fewer = replace(client, images=client.images[:13], labels=client.labels[:13])
    (first, second) = (
        ask(c, 1, context()).content.metric_records["metrics"] for c in (client, fewer)
    )
    assert dict(first) == dict(second)


@pytest.mark.parametrize("privacy", [IMAGE, SITE], ids=lambda p: p.unit)
def test_the_charge_is_on_the_disk_before_training_starts(
    privacy: AnyPrivacy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, memory = private_site(privacy, tmp_path), context()

    def killed(*_: object, **__: object) -> None:
        assert [line["charge"]["purpose"] for line in charges(tmp_path)] == ["run round 1"]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(private, "train_privately", killed)
        patch.setattr("clients.face.train_locally", killed)
        with pytest.raises(Killed):
            ask(client, 1, memory)
    again = ask(client, 1, context())  # a new process: Flower has forgotten
    assert [sorted(line) for line in charges(tmp_path)] == [["charge"], ["outcome", "settled"]]
    assert same_reply(again, ask(private_site(privacy), 1, context()))


def test_an_error_in_training_stays_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, memory = private_site(IMAGE, tmp_path), context()
    with monkeypatch.context() as patch:

        def fails(*_: object, **__: object) -> None:
            raise ValueError("training fails")

        patch.setattr(private, "train_privately", fails)
        with pytest.raises(ValueError, match="training fails"):
            ask(client, 1, memory)
    ask(client, 1, memory)
    numbers = [line["charge"]["number"] for line in charges(tmp_path) if "charge" in line]
    assert numbers == [0, 1]
    assert charges(tmp_path)[1] == {"settled": 0, "outcome": "failed"}


def test_a_repeated_round_gets_the_same_bytes_and_costs_nothing(tmp_path: Path) -> None:
    client = private_site(IMAGE, tmp_path)
    first = ask(client, 1, context())
    before = charges(tmp_path)
    assert same_reply(ask(client, 1, context()), first)
    assert charges(tmp_path) == before


def test_without_a_disk_a_repeated_round_is_paid_again_with_other_noise() -> None:
    client, memory = private_site(IMAGE), context()
    first = ask(client, 1, memory)
    second = ask(client, 1, memory)
    assert not same_reply(first, second)
    lines = str(memory.state.config_records[LEDGER]["lines"]).splitlines()
    assert sum("charge" in json.loads(line) for line in lines) == 2


def test_a_second_run_continues_the_account_and_never_repeats_noise(tmp_path: Path) -> None:
    first = ask(private_site(SITE, tmp_path), 1, context())
    other = replace(private_site(SITE, tmp_path, "other"), n_rounds=11)
    other = replace(other, private=replace(other.private, n_rounds=11))
    second = ask(other, 1, context())
    spent = second.content.metric_records["metrics"]["epsilon"]
    assert spent == epsilon([Steps(2.0, 1.0, 2)], 1e-3, "gdp")
    difference = torch.cat([(tensors(first)[n] - v).flatten() for n, v in tensors(second).items()])
    assert difference.std() > 0.2  # the noise is 0.2 a number in each: it does not cancel


def test_it_stops_before_the_budget_is_overspent(tmp_path: Path) -> None:
    target = epsilon([Steps(2.0, 1.0, 2)], 1e-3, "gdp")
    privacy = SITE.model_copy(update={"target_epsilon": target})
    client, memory = private_site(privacy, tmp_path), context()
    for server_round in (1, 2):
        ask(client, server_round, memory)
    with pytest.raises(BudgetSpent, match="no room for another round"):
        ask(client, 3, memory)
    with pytest.raises(BudgetSpent):  # a new process of another run
        ask(private_site(privacy, tmp_path, "other"), 3, context())


def test_an_attacker_pays_nothing_and_says_what_an_honest_site_would(tmp_path: Path) -> None:
    client, memory = private_site(IMAGE, tmp_path), context()
    asked = message(3, norm="group")
    client.receive(asked)
    poisoned = client.run(asked, memory, Hooks(weights=lambda backbone: None))
    reply = client.reply(asked, memory, poisoned)
    steps = IMAGE.cost(10, TRAINING.epochs)
    said = reply.content.metric_records["metrics"]["epsilon"]
    assert said == epsilon([steps] * 3, 1e-3, "prv")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_site_unit_sends_a_clipped_update_under_noise(tmp_path: Path) -> None:
    silent = SITE.model_copy(update={"noise_multiplier": 0.0})
    reply = ask(private_site(silent, tmp_path), 1, context())
    update = torch.cat([v.flatten() for v in tensors(reply).values()])
    assert update.norm() <= 0.1
    assert "epsilon" not in reply.content.metric_records["metrics"]  # infinite


def test_batch_norm_is_refused_by_name(tmp_path: Path) -> None:
    client = replace(private_site(IMAGE, tmp_path), backbone=site(norm="batch").backbone)
    with pytest.raises(ValueError, match=r"without batch normalisation.*layers\.0\.1"):
        client.train(message(1, norm="batch"), context())


def test_figures_without_noise_do_not_leave(tmp_path: Path) -> None:
    client = private_site(IMAGE, tmp_path)
    with pytest.raises(ValueError, match=r"evaluation\.local: false"):
        client.evaluate(message(1, "evaluate", norm="group"), context())
