import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.benchmarks.by_path import script

svg = script("svg_chart")
NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (1, 1000, True, [1, 10, 100, 1000]),
        (3, 40, True, [1, 10, 100]),
        (10, 10, True, [10, 100]),
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.21, False, [0.12, 0.14, 0.16, 0.18, 0.20, 0.22]),
        (-1, 1, False, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks(low, high, log, expected):
    assert svg.ticks(low, high, log) == pytest.approx(expected)


@pytest.mark.parametrize("low", [0, 5, -3, 1e-9, 7e8])
@pytest.mark.parametrize("span", [0, 1e-3, 1, 999])
def test_ticks_enclose(low, span):
    found = svg.ticks(low, low + span, False)
    tolerance = 1e-9 * max(abs(low), span, 1)
    assert found[0] <= low + tolerance
    assert found[-1] >= low + span - tolerance
    assert 2 <= len(found) <= 8


def test_a_chart_is_xml_with_every_point_in_its_place():
    lines = {"a < b": [(1, 1), (10, 10), (100, 100)], "other": [(1, 100)]}
    root = ElementTree.fromstring(svg.chart("T", "n", "s", lines, True, True))
    texts = [text.text for text in root.iter(f"{NAMESPACE}text")]
    assert {"T", "n", "s", "a < b", "other", "1", "10", "100"} <= set(texts)
    polylines = [p.get("points") for p in root.iter(f"{NAMESPACE}polyline")]
    found = [tuple(map(float, pair.split(","))) for pair in polylines[0].split()]
    assert found == [(84, 380), (392, 214), (700, 48)]
    assert len(list(root.iter(f"{NAMESPACE}circle"))) == 4
    colours = re.findall(r'polyline[^>]*stroke="(#\w+)"', ElementTree.tostring(root).decode())
    assert len(set(colours)) <= 2


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="at least one point"):
        svg.chart("T", "n", "s", {})
    with pytest.raises(ValueError, match="values > 0, got 0"):
        svg.chart("T", "n", "s", {"a": [(0, 1)]}, log_x=True)


@pytest.mark.parametrize(
    ("value", "text"), [(0.01, "0.01"), (1000, "1k"), (2.5e6, "2.5M"), (1e9, "1G"), (0, "0")]
)
def test_labels(value, text):
    assert svg.label(value) == text
