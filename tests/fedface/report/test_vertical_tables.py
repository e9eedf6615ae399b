from typing import Any

import pytest

from fedface.report.vertical_tables import vertical_table


def result(accuracy: float = 0.5, epsilon: float | None = 4.0, **changes: Any) -> dict[str, Any]:
    spent = {} if epsilon is None else {"right": {"replace_one": epsilon, "zero_out": epsilon / 2}}
    point = {"alpha": 0.1, "tar": 0.25, "low": 0.2, "high": 0.3}
    evaluation = {
        "verification": {"points": [point], "eer": 0.3},
        "identification": {"rates": [{"rank": 1, "rate": 0.4, "low": 0.3, "high": 0.5}]},
        "enrolled": {"accuracy": accuracy, "low": 0.4, "high": 0.6},
    }
    return {"spent": spent, "evaluation": evaluation, **changes}


def test_one_seed_shows_intervals() -> None:
    table = vertical_table({"afe": [result()]})
    assert table.columns[2:] == (
        "epsilon (replace-one / zero-out)",
        "enrolled",
        "TAR@0.1",
        "EER",
        "rank-1",
    )
    assert table.rows == (
        (
            "afe",
            "1",
            "4 / 2",
            "0.500 (0.400..0.600)",
            "0.250 (0.200..0.300)",
            "0.300",
            "0.400 (0.300..0.500)",
        ),
    )


def test_several_seeds_show_mean_and_range_and_the_largest_epsilon() -> None:
    (row,) = vertical_table({"afe": [result(0.5), result(0.7, 6.0)]}).rows
    assert row[1:4] == ("2", "6 / 3", "0.600 (0.500..0.700)")


def test_what_was_not_measured_is_a_dash() -> None:
    lost = result(evaluation={"failed": "no direction"})
    none = result(epsilon=None)
    none["evaluation"]["enrolled"] = None
    rows = vertical_table(
        {"lost": [lost], "none": [none], "nothing": [result(evaluation=None)]}
    ).rows
    assert rows[0] == ("lost", "1", "4 / 2", "-", "-", "-", "-")
    assert rows[1][2:4] == ("-", "-")
    assert rows[2][3:] == ("-",) * 4


def test_a_table_needs_a_variant() -> None:
    with pytest.raises(ValueError, match="at least one variant"):
        vertical_table({})
