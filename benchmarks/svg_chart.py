"""Line charts as plain SVG text: axes with ticks, linear or logarithmic, and a legend."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

Points = Sequence[tuple[float, float]]

COLOURS = (
    *("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#0a7ea4", "#bf3989"),
    *("#24292f", "#bc4c00"),
)
_WIDTH, _HEIGHT = 900, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 700, 48, 380


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Returns round numbers that enclose ``low..high``: powers of ten, or about five steps.

    Raises:
        ValueError: If a logarithmic axis begins at zero or below.
    """
    if log:
        if low <= 0:
            raise ValueError(f"a logarithmic axis needs values > 0, got {low:g}")
        first, last = floor(log10(low)), ceil(log10(high))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)]
    span = high - low or abs(high) or 1.0
    size = 10.0 ** floor(log10(span / 5))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 6)
    start = floor(low / step)
    return [step * i for i in range(start, max(ceil(high / step), start + 1) + 1)]


def label(value: float) -> str:
    """Returns a tick's text."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.6g}"


def chart(
    title: str,
    x_title: str,
    y_title: str,
    series: Mapping[str, Points],
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Returns an SVG image of the series (name -> points), one line with marks each.

    Raises:
        ValueError: If there is no point, or one that a logarithmic axis cannot show.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError("a chart needs at least one point, got none")
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), log_x)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), log_y)

    def across(x: float) -> float:
        return _LEFT + _share(x, x_ticks, log_x) * (_RIGHT - _LEFT)

    def down(y: float) -> float:
        return _BOTTOM - _share(y, y_ticks, log_y) * (_BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#24292f">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text((_LEFT + _RIGHT) / 2, 24, title, size=15),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 18, x_title),
        _text(18, (_TOP + _BOTTOM) / 2, y_title, turned=True),
    ]
    for x in x_ticks:
        parts.append(_line((across(x), _TOP), (across(x), _BOTTOM)))
        parts.append(_text(across(x), _BOTTOM + 18, label(x)))
    for y in y_ticks:
        parts.append(_line((_LEFT, down(y)), (_RIGHT, down(y))))
        parts.append(_text(_LEFT - 8, down(y) + 4, label(y), anchor="end"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(across(x), down(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        height = _TOP + 16 + 18 * number
        parts.append(
            f'<rect x="{_RIGHT + 14}" y="{height - 9}" width="14" height="4" fill="{colour}"/>'
        )
        parts.append(_text(_RIGHT + 34, height - 3, name, anchor="start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _share(value: float, around: Sequence[float], log: bool) -> float:
    """Where ``value`` lies between the first and the last tick, 0 to 1."""
    low, high = around[0], around[-1]
    if log:
        return (log10(value) - log10(low)) / (log10(high) - log10(low))
    return (value - low) / (high - low)


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d0d7de"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "middle", size: int = 12, turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{turn}>'
        f"{escape(text)}</text>"
    )
