"""The plot: each load's throughput and CPU time beside the peers', as SVG written by hand.

Bars are relative to systemd-socket-proxyd, whose bar is 1 by definition. A style sheet in the
file follows the reader's preference for a light or dark page. A bar longer than the axis is cut
at its end; its number is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Sequence, Tuple
from xml.sax.saxutils import escape

from . import summary
from .proxies import OURS, PROXYD, SOCAT
from .results import Results
from .rounds import LOADS, Sample
from .ways import WAYS

BARS = ((OURS, "ours"), (SOCAT, "socat"), (PROXYD, "proxyd"))
WIDTH = 960
MARGIN = 16
HEADER = 64
LABELS = 120
BAR = 14
BAR_GAP = 3
GROUP_GAP = 18
PANEL_TITLE = 34
AXIS_FOOT = 26
VALUE_ROOM = 64
AXIS_END = 2.0
GROUP = len(BARS) * (BAR + BAR_GAP) + GROUP_GAP
PANEL_WIDTH = (WIDTH - MARGIN * 2 - LABELS) // 2
AXIS_WIDTH = PANEL_WIDTH - VALUE_ROOM

STYLE = """\
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 14px }
  .small, .tick { font-size: 11px; fill: #59636e }
  .page { fill: #ffffff }
  .ours { fill: #0969da } .socat { fill: #bf8700 } .proxyd { fill: #8c959f }
  .grid { stroke: #d1d9e0 } .one { stroke: #59636e; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small, .tick { fill: #9198a1 }
    .page { fill: #0d1117 }
    .ours { fill: #4493f8 } .socat { fill: #d29922 } .proxyd { fill: #7d8590 }
    .grid { stroke: #3d444d } .one { stroke: #9198a1 }
  }"""


@dataclass(frozen=True)
class Panel:
    """One set of bars: for each load and proxy the value relative to the reference."""

    title: str
    values: Dict[Tuple[str, str], float]


def draw(found: Dict[str, Results]) -> str:
    """The whole file; a way that was not measured is left out."""
    ways = [way for way in WAYS.values() if way.name in found and found[way.name].samples]
    panel_height = PANEL_TITLE + GROUP * len(LOADS) + AXIS_FOOT
    height = HEADER + panel_height * len(ways) + MARGIN
    parts: List[str] = [*_header()]
    for index, way in enumerate(ways):
        top = HEADER + index * panel_height
        for column, panel in enumerate(_panels(way.plot_title, found[way.name].samples)):
            left = MARGIN + LABELS + column * PANEL_WIDTH
            parts.extend(_panel(panel, left, top, labelled=column == 0))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>Throughput and CPU time beside socat and systemd-socket-proxyd</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _panels(where: str, samples: Sequence[Sample]) -> Iterator[Panel]:
    for title, value in (
        (f"Rate, {where} (longer is better)", summary.rate),
        ("CPU time of it (shorter is better)", summary.cpu),
    ):
        values = {}
        for load in LOADS:
            for proxy, _ in BARS:
                ratio = summary.ratio(samples, load.name, value, proxy, PROXYD)
                if ratio is not None:
                    values[load.name, proxy] = ratio.median
        yield Panel(title, values)


def _header() -> Iterator[str]:
    yield text(MARGIN, 26, "vsock-proxy beside its peers, systemd-socket-proxyd = 1", "title")
    left = MARGIN
    for proxy, style in BARS:
        yield f'<rect class="{style}" x="{left}" y="38" width="12" height="12" rx="2"/>'
        yield text(left + 18, 49, proxy, "small")
        left += 18 + 8 * len(proxy) + 12


def _panel(panel: Panel, left: int, top: int, labelled: bool) -> Iterator[str]:
    bottom = top + PANEL_TITLE + GROUP * len(LOADS)
    yield text(left, top + 18, panel.title, "title")
    yield from _axis(left, top + PANEL_TITLE - 6, bottom - GROUP_GAP + 6)
    for number, load in enumerate(LOADS):
        y = top + PANEL_TITLE + number * GROUP
        if labelled:
            yield text(left - LABELS, y + GROUP // 2 - 4, load.title, "load")
        for proxy, style in BARS:
            value = panel.values.get((load.name, proxy))
            if value is not None:
                length = min(value, AXIS_END) / AXIS_END * AXIS_WIDTH
                place = f'x="{left}" y="{y}" width="{length:.1f}" height="{BAR}"'
                yield f'<rect class="{style}" {place} rx="2"/>'
                cut = " \u2192" if value > AXIS_END else ""
                yield text(left + length + 5, y + BAR - 3, f"{value:.2f}{cut}", "small")
            y += BAR + BAR_GAP


def _axis(left: int, top: int, bottom: int) -> Iterator[str]:
    for tick in (0.0, 0.5, 1.0, 1.5, 2.0):
        x = left + tick / AXIS_END * AXIS_WIDTH
        style = "one" if tick == 1.0 else "grid"
        yield f'<line class="{style}" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
        yield text(x - 8, bottom + 14, f"{tick:g}", "tick")


def text(x: float, y: float, words: str, style: str) -> str:
    """Words at a place."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
