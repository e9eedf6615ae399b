import pytest

from fedface.report.bench import Bench
from fedface.report.grid_overview import case, overviews
from tests.fedface.report.test_bench import record
from tests.fedface.report.test_grid_verdict import lines


def test_time_is_compared_over_cells_that_both_completed() -> None:
    found = list(lines())
    slow = [r for r in found if (r["defence"], r["attack"]) == ("none", "door")]
    slow[0] |= {"status": "failed", "seconds": None}
    found[-2] |= {"seconds": 9000.0}  # rule under door: nothing beside it
    rule = overviews(Bench(tuple(found)), {})[0]
    assert rule.slowdown == pytest.approx(2.0)
    assert rule.seconds == pytest.approx((6 + 900 + 6) / 3)


def test_a_case_names_what_differs_alone() -> None:
    one = Bench(tuple(lines()))
    assert case(one, "one/0.1/door") == "door" and case(one, "one/0/clean") == "no attack"
    other = [*lines(), record("two", 0.3, "door")]
    two = Bench(tuple(other))
    assert case(two, "two/0.3/door") == "door (two, 30.0 % malicious)"
    assert case(two, "one/0/clean") == "no attack (one)"
    assert case(two, "elsewhere") == "elsewhere"
