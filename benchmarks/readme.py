"""The README's part about performance, written between two marks in it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from statistics import median
from typing import Dict, Iterator

from . import summary
from .footprint import FRESH
from .proxies import OURS, PROXYD, SOCAT
from .results import Results
from .rounds import LOADS, Load
from .ways import HYBRID

BEGIN = "<!-- python3 -m benchmarks writes from here -->\n"
END = "<!-- to here -->\n"
KIB_A_MIB = 1024
MANY = 1000
WIDTH = 100


def update(path: Path, found: Dict[str, Results]) -> None:
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"benchmark: the marks are missing in {path}")
    path.write_text("".join([before, BEGIN, *_part(found), END, after]))


def _part(found: Dict[str, Results]) -> Iterator[str]:
    """The first way alone, for a newcomer; the page of the benchmark has all of them."""
    results = found.get(HYBRID.name)
    if results is None:
        return
    machine = results.machine
    rounds = 1 + max(sample.round for sample in results.samples)
    where = (
        f"From a guest's hybrid socket to TCP, medians of {rounds} interleaved rounds, on a machine"
        f" with {machine['CPU']}, Linux {machine['kernel'].split('-')[0]}, CPython"
        f" {machine['Python']}, systemd {machine['systemd'].split('.')[0]} and socat"
        f" {machine['socat']}:"
    )
    yield f"\n{textwrap.fill(where, WIDTH)}\n\n"
    yield f"| | this | times {PROXYD} | times {SOCAT} |\n| --- | --- | --- | --- |\n"
    for load in LOADS:
        yield from _rows(results, load)
    yield from _footprint(results)
    yield "\n"


def _rows(results: Results, load: Load) -> Iterator[str]:
    own = summary.of(results.samples, load.name, OURS)
    rate = summary.median_of(own, summary.rate)
    if rate is not None:
        unit = load.rate_unit.split("/")[0]
        what = f"{unit} a second{f' {load.name}' if load.bulk else ''}"
        yield f"| {what} | {rate:,.0f} | {_ratios(results, load, summary.rate)} |\n"
    cpu = None if load.bulk else summary.median_of(own, summary.cpu)
    if cpu is not None:
        seconds, operation = load.cpu_unit.split("/")
        ratios = _ratios(results, load, summary.cpu)
        yield f"| processor time of a {operation} | {cpu:.1f} {seconds} | {ratios} |\n"


def _ratios(results: Results, load: Load, value: summary.Value) -> str:
    ratios = (summary.ratio(results.samples, load.name, value, OURS, p) for p in (PROXYD, SOCAT))
    return " | ".join("-" if ratio is None else f"{ratio.median:.2f}" for ratio in ratios)


def _footprint(results: Results) -> Iterator[str]:
    sizes = [
        memory.a_worker
        for memory in results.memory
        if (memory.proxy, memory.workers, memory.state) == (OURS, 100, FRESH)
    ]
    times = [each.seconds for each in results.held if (each.proxy, each.wanted) == (OURS, MANY)]
    if sizes and sizes[0] is not None and times:
        yield (
            f"\nA worker takes {sizes[0] / KIB_A_MIB:.1f} MiB at `-w 100`; a thousand are up and"
            f" serving in {median(times):.1f} s.\n"
        )
