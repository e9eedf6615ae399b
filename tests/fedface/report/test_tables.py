from typing import Any

import pytest

from fedface.report.tables import MISSING, Table, comparison_table

ALPHAS = (0.001, 0.01)


def point(alpha: float, tar: float) -> dict[str, Any]:
    return {"alpha": alpha, "tar": tar, "low": tar - 0.1, "high": tar + 0.1}


def attacked(alpha: float, asr: float, lift: float | None) -> dict[str, Any]:
    return {"alpha": alpha, "asr": asr, "low": asr - 0.05, "high": asr + 0.05, "lift": lift}


def result(
    tar: float = 0.5,
    alphas: tuple[float, ...] = ALPHAS,
    backdoor: dict[str, Any] | None = None,
    detection: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "evaluation": {
            "verification": {"points": [point(a, tar + a) for a in alphas], "eer": 0.25},
            "identification": {"rates": [{"rank": 5, "rate": 0.9}, {"rank": 1, "rate": 0.125}]},
            "backdoor": backdoor,
        },
        "detection": detection,
    }


def cell(table: Table, variant: str, column: str) -> str:
    (row,) = [row for row in table.rows if row[0] == variant]
    return row[table.columns.index(column)]


def test_one_row_per_variant_in_the_order_given() -> None:
    table = comparison_table({"b": [result()], "a": [result()] * 3})
    assert [row[:2] for row in table.rows] == [("b", "1"), ("a", "3")]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.columns[:6] == ("variant", "seeds", "TAR@0.01", "TAR@0.001", "EER", "rank-1")


def test_one_seed_shows_its_own_interval() -> None:
    table = comparison_table({"a": [result(tar=0.5)]})
    assert cell(table, "a", "TAR@0.01") == "0.510 (0.410..0.610)"
    assert cell(table, "a", "EER") == "0.250"
    assert cell(table, "a", "rank-1") == "0.125"


def test_several_seeds_show_mean_and_range_of_the_seeds() -> None:
    table = comparison_table({"a": [result(tar=tar) for tar in (0.25, 0.5, 0.0)]})
    assert cell(table, "a", "TAR@0.01") == "0.260 (0.010..0.510)"
    assert cell(table, "a", "EER") == "0.250 (0.250..0.250)"


def test_backdoor_figures_and_both_lifts() -> None:
    figures = {
        "recalibrated": [attacked(0.001, 0.75, 0.5), attacked(0.01, 0.875, None)],
        "deployed": [attacked(0.001, 0.5, 0.125), attacked(0.01, 0.5, 0.25)],
    }
    table = comparison_table({"a": [result(backdoor=figures)]})
    assert cell(table, "a", "ASR@0.001") == "0.750 (0.700..0.800)"
    assert cell(table, "a", "ASR@0.01") == "0.875 (0.825..0.925)"
    assert cell(table, "a", "lift@0.001") == "0.500"
    assert cell(table, "a", "lift@0.01") == MISSING
    assert cell(table, "a", "lift@0.001 deployed") == "0.125"
    assert "lift@0.01 deployed" not in table.columns


def test_detection_figures() -> None:
    found = {"tpr": 1, "fpr": 0.0, "auroc_within_rounds": None, "max_honest_exclusion": 0.5}
    table = comparison_table({"a": [result(detection=found)]})
    assert [cell(table, "a", c) for c in ("TPR", "FPR", "AUROC", "max HER")] == [
        "1.000",
        "0.000",
        MISSING,
        "0.500",
    ]


@pytest.mark.parametrize(
    "lost", [{"evaluation": None}, {"evaluation": {"round": 3, "failed": "why"}}, {}]
)
def test_what_was_not_measured_is_missing(lost: dict[str, Any]) -> None:
    table = comparison_table({"good": [result()], "lost": [lost], "half": [lost, result(tar=0.5)]})
    for column in table.columns[2:]:
        assert cell(table, "lost", column) == MISSING
    assert cell(table, "half", "TAR@0.01").startswith("0.510")
    assert cell(table, "half", "seeds") == "2"


@pytest.mark.parametrize("runs", [{"evaluation": None}, result(alphas=())])
def test_a_table_without_any_measured_rate_has_no_such_column(runs: dict[str, Any]) -> None:
    """All false accept rates were refused, or the model could not be measured."""
    table = comparison_table({"a": [runs]})
    assert not any("@" in column for column in table.columns)
    assert len(table.rows) == 1 and "EER" in table.columns


def test_rates_that_some_variant_lacks_are_missing_there() -> None:
    table = comparison_table({"a": [result(alphas=(0.01,))], "b": [result(alphas=ALPHAS)]})
    assert cell(table, "a", "TAR@0.001") == MISSING and cell(table, "a", "TAR@0.01") != MISSING
    assert cell(table, "b", "TAR@0.001") != MISSING


def test_no_variant_is_no_table() -> None:
    with pytest.raises(ValueError, match="at least one variant"):
        comparison_table({})


def test_select_takes_columns_that_are_there_in_the_order_asked() -> None:
    table = Table(("a", "b", "c"), (("1", "2", "3"), ("4", "5", "6")))
    assert table.select(("c", "x", "a")) == Table(("c", "a"), (("3", "1"), ("6", "4")))


def test_markdown() -> None:
    table = Table(("a", "b"), (("1", "2"),))
    assert table.markdown() == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
