"""Charts as coordinates of an inline SVG, which the template draws in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ignite_prune.report.findings import Series

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 28
_LINES = 10  # more would not be told apart: the first and last ones are shown


@dataclass(frozen=True)
class Line:
    """A curve: its label, the points of an SVG polyline, and its last value."""

    label: str
    points: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A picture: its title, curves, and ticks as ``(position, label)``."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    left_out: int


def charts_of(curves: Mapping[str, Mapping[str, Series]]) -> list[Chart]:
    """Return one chart for each quantity."""
    return [_chart(title, series) for title, series in curves.items()]


def _chart(title: str, series: Mapping[str, Series]) -> Chart:
    shown = dict(list(series.items())[:_LINES])
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    low, high = (0.0, 1.0) if "sparsity" in title else (min(ys), max(ys))
    high = high if high > low else low + 1.0
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = tuple(
        Line(label, " ".join(f"{a},{b}" for a, b in (place(*point) for point in points)), f"{points[-1][1]:.4g}")
        for label, points in shown.items()
    )
    across = tuple((place(x, low)[0], f"{x:g}") for x in ticks(left, right))
    up = tuple((place(left, y)[1], f"{y:.4g}") for y in ticks(low, high))
    return Chart(title, lines, across, up, len(series) - len(shown))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers between two.

    Example:
        >>> ticks(0, 1), ticks(1, 22)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5, 10, 15, 20])
    """
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * each, 12) for each in range(first, math.floor(high / step + 1e-9) + 1)]
