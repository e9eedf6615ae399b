from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedface.report.bench import Bench
from fedface.report.grid_overview import overviews
from fedface.report.grid_verdict import setting, verdict
from tests.fedface.report.test_bench import record


def lines(
    good: float = 0.02, bad: float = 0.6, good_fpr: float = 0.0, **extra: Any
) -> Iterator[dict[str, Any]]:
    """Two attacks against no rule and a rule; the rule takes twice the time."""
    for defence, lift, fpr in (("none", bad, 0.0), ("rule", good, good_fpr)):
        seconds = {"seconds": 30.0 * (1 + (defence == "rule")), "n_rounds": 10, **extra}
        yield record("one", 0, "clean", defence, tar=0.5, fpr=fpr, **seconds)
        for attack, more in (("door", 0.0), ("gate", 0.05)):
            yield record("one", 0.1, attack, defence, 0, 0.45, lift + more, fpr, **seconds)


def said(bench: Bench, **counts: int) -> str:
    asked = Counter(r["defence"] for r in bench.records) | Counter(counts)
    return "\n".join(verdict(bench, overviews(bench, asked), "none"))


def test_the_best_rule_is_named_with_its_price_and_what_it_prevents() -> None:
    text = said(Bench(tuple(lines())))
    # damage of the rule: gate 0.07 + 0.05, door 0.02 + 0.05, no attack 0: mean 0.0633
    assert "Use rule: of 2 rules it does the least damage at its worst, 0.12 under gate" in text
    assert "and the least on average, 0.06." in text
    assert "mean ASR lift of 4.5 points, at worst 7.0 points, under gate." in text
    assert "0.0 points of TAR when nobody attacks, 5.0 points of TAR under attack" in text
    assert "2.0 times the time of a round with none" in text
    assert "With none, which is no defence" in text and "62.5 points, at worst 65.0" in text
    assert "rule fails in none of its cells." in text
    assert "Caution" not in text and "failed or were not run" not in text


def test_where_the_best_rule_fails_is_named_largest_first() -> None:
    text = said(Bench(tuple(lines(good=0.12, good_fpr=0.11))))
    assert "rule fails under gate (ASR lift 17.0 points), door (ASR lift 12.0 points)" in text
    assert "no attack (honest updates excluded 11.0 points)" in text


def test_attacks_that_gain_nothing_undefended_are_cautioned_about() -> None:
    text = said(Bench(tuple(lines(good=0.01, bad=-0.04))))
    assert "No defence does less damage at its worst than none, which is none" in text
    assert "Caution: not even with none" in text


def test_attacks_without_a_trigger_are_judged_by_what_they_cost() -> None:
    def text_for(loss: float) -> str:
        found = [record("one", 0, "clean", d, tar=0.5) for d in ("none", "rule")]
        for defence, lost in (("none", loss), ("rule", 0.01)):
            found.append(record("one", 0.1, "flip", defence, 0, 0.5 - lost) | {"backdoor": None})
        return said(Bench(tuple(found)))

    text = text_for(0.3)
    assert "Use rule" in text and "Caution" not in text
    assert "With none, which is no defence, attacks cost 30.0 points of TAR on average" in text
    assert "Caution: not even with none" in text_for(0.05)


def test_a_better_mean_is_told_from_a_better_worst_case() -> None:
    found = list(lines(good=0.3, bad=0.3))
    for line in found:
        if (line["defence"], line["attack"]) == ("none", "gate"):
            line["backdoor"]["recalibrated"][0]["lift"] = 0.5
        if (line["defence"], line["attack"]) == ("none", "door"):
            line["backdoor"]["recalibrated"][0]["lift"] = 0.0
    text = said(Bench(tuple(found)))
    assert "Use rule" in text and "On average none does the least" in text


def test_overlapping_intervals_and_lacking_cells_are_said() -> None:
    close = Bench(tuple(lines(good=0.5, bad=0.6)))
    assert "rule's worst case cannot be told from that of none" in said(close)
    assert "cannot be told" not in said(Bench(tuple(lines())))
    assert "Cells of rule failed or were not run" in said(close, rule=4)


def test_nothing_is_claimed_of_a_grid_without_a_reference() -> None:
    found = [line for line in lines() if line["attack"] != "clean"]
    assert said(Bench(tuple(found))).startswith("No defence can be ranked")


def test_the_setting_is_one_of_recorded_counts(tmp_path: Path) -> None:
    grid = {
        "base": {"federation": {"n_clients": 10, "n_rounds": 4}},
        "defences": {"none": {}, "rule": {}},
        "attacks": {"door": {}, "gate": {}},
        "partitions": {"one": {}},
        "seeds": [0],
    }
    people = {"train": {"identities": 50}, "test": {"identities": 30}}
    text = setting(Bench(tuple(lines())), grid, people)
    assert "10 sites, 10.0 % of them malicious, 4 rounds." in text
    assert "50 people; everything is measured on 30 others" in text
    assert "2 defences, 2 attacks, 1 partition, 1 seed." in text
    assert "1 in 100 for TAR and 1 in 1,000 for ASR" in text
    assert "They train" not in setting(Bench(tuple(lines())), grid, None)
