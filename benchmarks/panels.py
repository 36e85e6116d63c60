"""The panels of the dashboard as SVG written by hand, from what Prometheus answers.

Where a panel is, its unit and its legends come from the dashboard itself. It is drawn more simply
than Grafana would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from .plot import text

WIDTH = 1200
MARGIN = 12
HEADER = 44
COLUMNS = 24
COLUMN = (WIDTH - 2 * MARGIN) / COLUMNS
ROW = 30
GAP = 4
TITLE = 36
LEFT, RIGHT, BELOW = 62, 12, 56
LEGEND_ROWS = 2
LEGEND_ROW = 15
LEGEND_LETTER = 6.4
TICKS = 4
TOLERATED = 1.01
COLORS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#c9a000", "#1f9e9e", "#8f8f8f")
STYLE = """\
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 13px } .page-title { font-weight: 600; font-size: 16px }
  .small { font-size: 11px; fill: #59636e } .value { font-size: 30px; font-weight: 600 }
  .page { fill: #f4f5f5 } .panel { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #e4e7eb }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 }
    .page { fill: #0d1117 } .panel { fill: #161b22; stroke: #3d444d } .grid { stroke: #2a313c }
  }"""

Point = Tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a panel: its legend, and values by time in seconds."""

    legend: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Span:
    """From when to when, by time.time()."""

    start: float
    end: float


def draw(panels: Sequence[Tuple[Dict[str, Any], List[Series]]], span: Span, title: str) -> str:
    """The whole file, of the panels of the dashboard and their series."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    height = HEADER + rows * ROW + MARGIN
    parts = [part for panel, series in panels for part in _panel(panel, series, span)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}"/>',
            text(MARGIN + GAP, 28, title, "page-title"),
            *parts,
            "</svg>\n",
        ]
    )


def legend_of(template: str, labels: Dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template).strip()


def _panel(panel: Dict[str, Any], series: List[Series], span: Span) -> Iterator[str]:
    place = panel["gridPos"]
    left, top = MARGIN + place["x"] * COLUMN + GAP, HEADER + place["y"] * ROW + GAP
    width, height = place["w"] * COLUMN - 2 * GAP, place["h"] * ROW - 2 * GAP
    size = f'width="{width:.1f}" height="{height:.1f}"'
    yield f'<rect class="panel" x="{left:.1f}" y="{top:.1f}" {size} rx="3"/>'
    yield text(left + 10, top + 18, panel["title"], "title")
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "stat":
        yield text(left + 10, top + height / 2 + 24, _stat(series, defaults["unit"], span), "value")
        return
    frame = Frame(left + LEFT, top + TITLE, width - LEFT - RIGHT, height - TITLE - BELOW, span)
    stacked = "stacking" in defaults["custom"]
    yield from _chart(frame, _stack(series) if stacked else series, defaults["unit"], stacked)


def _stat(series: List[Series], unit: str, span: Span) -> str:
    last = [(each.legend, each.points[-1][1]) for each in series if each.points]
    if not last:
        return "-"
    legend, value = last[0]
    if unit == "dateTimeFromNow":
        return f"{span.end - value / 1000:.0f} s ago"
    return legend or in_words(value, unit)


@dataclass(frozen=True)
class Frame:
    """Where the lines of a chart are."""

    left: float
    top: float
    width: float
    height: float
    span: Span

    def x(self, when: float) -> float:
        return self.left + (when - self.span.start) / (self.span.end - self.span.start) * self.width

    def y(self, value: float, most: float) -> float:
        return self.top + self.height - value / most * self.height


def _chart(frame: Frame, series: Sequence[Series], unit: str, stacked: bool) -> Iterator[str]:
    values = [value for each in series for _, value in each.points]
    most = _rounded_up(max(values, default=0.0))
    for tick in range(TICKS + 1):
        value = most * tick / TICKS
        y = frame.y(value, most)
        ends = (
            f'x1="{frame.left:.1f}" y1="{y:.1f}" x2="{frame.left + frame.width:.1f}" y2="{y:.1f}"'
        )
        yield f'<line class="grid" {ends}/>'
        yield text(frame.left - LEFT + 10, y + 4, in_words(value, unit), "small")
    bottom = frame.top + frame.height
    for tick in range(0, round(frame.span.end - frame.span.start) - 15, 60):
        yield text(frame.x(frame.span.start + tick) - 8, bottom + 14, f"{tick // 60} min", "small")
    # The highest of those that are stacked first, so that the lower ones are drawn over it.
    order = list(enumerate(series))
    for number, each in reversed(order) if stacked else order:
        yield from _line(frame, each, COLORS[number % len(COLORS)], most, stacked)
    yield from _legends(frame, series, bottom + 30)


def _line(frame: Frame, series: Series, colour: str, most: float, filled: bool) -> Iterator[str]:
    points = [f"{frame.x(when):.1f},{frame.y(value, most):.1f}" for when, value in series.points]
    if filled and points:
        first, last = frame.x(series.points[0][0]), frame.x(series.points[-1][0])
        bottom = frame.top + frame.height
        area = " ".join([f"{first:.1f},{bottom:.1f}", *points, f"{last:.1f},{bottom:.1f}"])
        yield f'<polygon points="{area}" fill="{colour}"/>'
    else:
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>'


def _legends(frame: Frame, series: Sequence[Series], y: float) -> Iterator[str]:
    """As many as there is room for."""
    begin, end = frame.left - LEFT + 10, frame.left + frame.width
    last = y + (LEGEND_ROWS - 1) * LEGEND_ROW
    x = begin
    for number, each in enumerate(series):
        width = 14 + LEGEND_LETTER * len(each.legend)
        if x + width > end:
            if y == last:
                return
            x, y = begin, y + LEGEND_ROW
        colour = COLORS[number % len(COLORS)]
        yield f'<rect x="{x:.1f}" y="{y - 8:.1f}" width="10" height="8" fill="{colour}"/>'
        yield text(x + 14, y, each.legend, "small")
        x += width + 12


def _stack(series: Sequence[Series]) -> List[Series]:
    """Each on top of those before it."""
    sums: Dict[float, float] = {}
    stacked = []
    for each in series:
        if not any(value for _, value in each.points):
            continue
        points = []
        for when, value in each.points:
            sums[when] = sums.get(when, 0.0) + value
            points.append((when, sums[when]))
        stacked.append(Series(each.legend, points))
    return stacked


def _rounded_up(value: float) -> float:
    """One that is easy to divide and read; a share may be a little more than 100 %."""
    step = 1e-6
    while True:
        for factor in (1, 2, 2.5, 4, 5):
            if value <= step * factor * TICKS * TOLERATED:
                return step * factor * TICKS
        step *= 10


def in_words(value: float, unit: str) -> str:
    """As Grafana has it, about."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1e3:.3g} ms"
    ending = {"s": " s", "Bps": " B/s", "cps": " /s"}.get(unit, "")
    for factor, prefix in ((1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}{ending.strip()}"
    return f"{value:.3g}{ending}"
