"""The account: written before it is spent, continued, never overspent, refused when damaged."""

import json
from pathlib import Path

import pytest

from fedface.privacy.accounting import Steps, epsilon
from fedface.privacy.budget import Account, Budget, left
from fedface.privacy.release import BudgetSpent

STEPS = Steps(4.0, 1.0, 1)
NO_LIMIT = Budget(None, 1e-5, "gdp")


def limited(n_rounds: int) -> Budget:
    """A budget of exactly ``n_rounds`` charges."""
    return Budget(epsilon([Steps(4.0, 1.0, n_rounds)], 1e-5, "gdp"), 1e-5, "gdp")


def test_a_charge_is_on_the_disk_before_it_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "site" / "ledger.jsonl"
    account = Account(path)
    charge = account.charge("k", "image", STEPS, NO_LIMIT, "run round 1")
    line = json.loads(path.read_text())
    assert line["charge"]["noise_multiplier"] == 4.0
    assert line["charge"]["purpose"] == "run round 1"
    assert Account(path).history() == (STEPS,)
    assert Account(path).find("k") == (charge, None)


def test_it_stops_before_the_budget_is_overspent_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for number in range(3):
        Account(path).charge(str(number), "image", STEPS, limited(3), "")
    before = path.read_bytes()
    with pytest.raises(BudgetSpent, match=r"no room for another round: .* nothing was trained"):
        Account(path).charge("3", "image", STEPS, limited(3), "")
    assert path.read_bytes() == before
    assert Account(path).spent(1e-5, "gdp") <= limited(3).epsilon  # type: ignore[operator]


def test_it_is_continued_and_its_epsilon_is_that_of_all_charges(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Account(path).charge("a", "site", STEPS, NO_LIMIT, "")
    account = Account(path)
    account.charge("b", "site", Steps(2.0, 1.0, 3), NO_LIMIT, "")
    together = epsilon([STEPS, Steps(2.0, 1.0, 3)], 1e-5, "gdp")
    assert Account(path).spent(1e-5, "gdp") == together


def test_settling_is_remembered_and_the_latest_charge_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    account = Account(path)
    first = account.charge("k", "image", STEPS, NO_LIMIT, "")
    account.settle(first, "failed")
    assert Account(path).find("k") == (first, "failed")
    second = Account(path).charge("k", "image", STEPS, NO_LIMIT, "")
    assert second.number == 1
    assert Account(path).find("k") == (second, None)
    assert Account(path).find("other") is None


def test_two_that_hold_the_same_file_do_not_lose_charges(tmp_path: Path) -> None:
    first, second = Account(tmp_path / "ledger.jsonl"), Account(tmp_path / "ledger.jsonl")
    first.charge("a", "image", STEPS, limited(2), "")
    second.charge("b", "image", STEPS, limited(2), "")
    with pytest.raises(BudgetSpent):
        first.charge("c", "image", STEPS, limited(2), "")


def test_a_line_torn_off_by_a_kill_is_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Account(path).charge("a", "image", STEPS, NO_LIMIT, "")
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    assert Account(path).history() == (STEPS,)
    Account(path).charge("b", "image", STEPS, NO_LIMIT, "")
    assert len(Account(path).charges) == 2


@pytest.mark.parametrize(
    "text",
    ["nonsense\n", "{}\n", '{"settled": 0, "outcome": "released"}\n', '["list"]\n', "\n"],
)
def test_a_damaged_ledger_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"ledger.jsonl: line 1: needed a charge"):
        Account(path)


def test_a_lost_file_is_restored_from_what_flower_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    account = Account(path)
    account.charge("a", "image", STEPS, NO_LIMIT, "")
    account.charge("b", "image", STEPS, NO_LIMIT, "")
    path.unlink()
    assert len(Account(path, account.lines).charges) == 2
    assert len(Account(path).charges) == 2
    assert len(Account(path, account.lines[:1]).charges) == 2
    with pytest.raises(ValueError, match="found another"):
        Account(path, ["other"])


def test_without_a_file_it_lives_in_its_lines() -> None:
    account = Account()
    account.charge("a", "image", STEPS, NO_LIMIT, "")
    assert Account(None, account.lines).charges == account.charges


def test_units_do_not_mix(tmp_path: Path) -> None:
    account = Account(tmp_path / "ledger.jsonl")
    account.charge("a", "image", STEPS, NO_LIMIT, "")
    with pytest.raises(ValueError, match="one unit of privacy, it holds charges for image, got"):
        account.charge("b", "subject", STEPS, NO_LIMIT, "")


def test_what_is_left() -> None:
    assert left(1.0, Budget(3.0, 1e-5, "gdp")) == 2.0
    assert left(float("inf"), Budget(3.0, 1e-5, "gdp")) == 0.0
    assert left(1.0, NO_LIMIT) is None
