"""The results as a page of Markdown."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

from . import metrics, services, summary, targets
from .footprint import Held, Memory, Start, Switches
from .proxies import BASELINE, OURS, OURS_LOGGING, PROXYD, PROXYD_PLAIN, SOCAT
from .results import Results
from .rounds import DIRECT, LOADS, Load, Sample
from .ways import WAYS

T = TypeVar("T")

ROWS = (OURS, OURS_LOGGING, BASELINE, SOCAT, PROXYD, PROXYD_PLAIN, DIRECT)
KIB_A_MIB = 1024
# What is told of short connections.
OF_SHORT = ("connections/s", "p99 us", "CPU us/connection")

INTRODUCTION = """\
# Benchmark

This proxy, `socat -b 65536` with a fork for each connection, and systemd's
`systemd-socket-proxyd`, each in front of the same backend, under the same load, in the same run.
[How it is measured](../benchmarks/README.md) says what each figure is, and how to take it again.
Each part below was measured on the machine that stands at its head.

![Throughput and CPU time beside the peers](benchmark.svg)
"""


def page(found: Dict[str, Results]) -> str:
    return "\n".join([INTRODUCTION, *(part(found[way]) for way in WAYS if way in found)])


def part(results: Results) -> str:
    """One way's results."""
    sections = [
        f"## {WAYS[results.way].title}\n",
        _machine(results),
        "### Figures to reach\n",
        _table(
            ("figure", "target", "measured", "met"),
            [(f.name, f.target, f.measured, _met(f.met)) for f in targets.figures(results)],
        ),
        *_loads(results),
        *_beside_the_traffic(results),
        *_busy(results),
        _errors(results),
    ]
    return "\n".join(sections)


def _machine(results: Results) -> str:
    rows = [(name, value) for name, value in results.machine.items()]
    rows.append(("rounds", f"{_rounds(results.samples)} of {results.seconds:g} s a load"))
    rows.append(("bulk transfer", f"{results.size / 2**20:g} MiB"))
    if results.burner is not None:
        rows.append(
            ("CPU accounting checked", f"measured {results.burner:.3f} of a known burner's time")
        )
    notes = "".join(f"\n{note}.\n" for note in results.notes)
    return _table(("", ""), rows) + notes


def _met(met: Optional[bool]) -> str:
    return {True: "yes", False: "**no**", None: "-"}[met]


def _loads(results: Results) -> Iterator[str]:
    for load in LOADS:
        samples = [sample for sample in results.samples if sample.load == load.name]
        if samples:
            yield f"### {load.title.capitalize()}\n"
            yield _load_table(load, samples)


def _load_table(load: Load, samples: Sequence[Sample]) -> str:
    ours = f"{OURS} to it"
    latency = "a transfer" if load.bulk else load.cpu_unit.split("/")[1]
    head = (
        "",
        load.rate_unit,
        f"median us {latency}",
        "p99 us",
        f"CPU {load.cpu_unit}",
        f"rate: {ours}",
        f"CPU: {ours}",
    )
    rows = []
    for proxy in ROWS:
        own = summary.of(samples, load.name, proxy)
        if own:
            rows.append((proxy, *_row(load, samples, own)))
    return _table(head, rows)


def _row(load: Load, samples: Sequence[Sample], own: Sequence[Sample]) -> Iterator[str]:
    proxy = own[0].proxy
    yield _number(summary.median_of(own, summary.rate), 0)
    yield _number(summary.median_of(own, lambda sample: sample.median_us), 0)
    yield _number(summary.median_of(own, summary.p99), 0)
    yield _number(summary.median_of(own, summary.cpu), 3 if load.bulk else 1)
    for value in (summary.rate, summary.cpu):
        ratio = None if proxy == OURS else summary.ratio(samples, load.name, value, OURS, proxy)
        yield "" if ratio is None else str(ratio)


def _beside_the_traffic(results: Results) -> Iterator[str]:
    yield from _section("Short connections with many workers", results.scale, _scale)
    yield from _section("Short connections with metrics", results.metrics, _metrics)
    yield from _section("Memory", results.memory, _memory)
    yield from _section("From the start to accepting", results.starts, _starts)
    yield from _section("Many connections at once", results.held, _held)
    yield from _section("Context switches of the workers", results.switches, _switches)
    yield from _section(f"{services.SERVICES} services", results.services, _services)


def _section(title: str, found: Optional[T], tables: Callable[[T], str]) -> Iterator[str]:
    """The tables of what was found, under their title; nothing where nothing was found."""
    if found:
        yield f"### {title}\n"
        yield tables(found)


def _scale(samples: Sequence[Sample]) -> str:
    names = sorted({sample.proxy for sample in samples}, key=lambda name: int(name.split()[-1]))
    rows = []
    for name in names:
        own = summary.of(samples, "short", name)
        ratio = summary.ratio(samples, "short", summary.rate, name, names[0])
        rows.append((name, *_of_short(own), str(ratio or "")))
    return _table(("", *OF_SHORT, f"rate: to {names[0]}"), rows)


def _metrics(samples: Sequence[Sample]) -> str:
    rows = []
    for name in (OURS, metrics.COUNTED, metrics.SCRAPED):
        own = summary.of(samples, "short", name)
        ratios = [
            summary.ratio(samples, "short", value, name, OURS)
            for value in (summary.rate, summary.p99, summary.cpu)
        ]
        to_ours = ("" if ratio is None or name == OURS else str(ratio) for ratio in ratios)
        rows.append((name, *_of_short(own), *to_ours))
    what = ("rate", "p99", "CPU")
    return _table(("", *OF_SHORT, *(f"{one}: to {OURS}" for one in what)), rows)


def _of_short(samples: Sequence[Sample]) -> Iterator[str]:
    """The figures that OF_SHORT names."""
    yield _number(summary.median_of(samples, summary.rate), 0)
    yield _number(summary.median_of(samples, summary.p99), 0)
    yield _number(summary.median_of(samples, summary.cpu), 1)


def _memory(records: Iterable[Memory]) -> str:
    rows = [
        (
            memory.proxy,
            str(memory.workers or ""),
            memory.state,
            "" if memory.a_worker is None else f"{memory.a_worker / KIB_A_MIB:.2f}",
            str(memory.processes),
            f"{memory.in_all / KIB_A_MIB:.1f}",
        )
        for memory in records
    ]
    return _table(("", "workers", "state", "MiB PSS a worker", "processes", "MiB PSS in all"), rows)


def _starts(records: Iterable[Start]) -> str:
    grouped: Dict[Tuple[str, Optional[int]], List[Start]] = defaultdict(list)
    for start in records:
        grouped[start.proxy, start.workers].append(start)
    rows = [
        (
            proxy,
            "" if workers is None else str(workers),
            f"{median(s.connected for s in starts) * 1e3:.0f}",
            f"{median(s.echoed for s in starts) * 1e3:.0f}",
            str(len(starts)),
        )
        for (proxy, workers), starts in grouped.items()
    ]
    return _table(
        ("", "workers", "ms to the first connection", "ms to the first echo", "starts"), rows
    )


def _held(records: Iterable[Held]) -> str:
    rows = [
        (
            held.proxy,
            str(held.workers or ""),
            f"{held.echoed} of {held.wanted}",
            f"{held.seconds:.2f}",
        )
        for held in records
    ]
    return _table(("", "workers", "echoed", "seconds from the start to the last echo"), rows)


def _switches(records: Iterable[Switches]) -> str:
    rows = [(f"-w {s.workers}", f"{s.connections}", f"{s.a_connection:.2f}") for s in records]
    head = ("", "connections, one by one", "switches a connection, of all workers together")
    return _table(head, rows)


def _services(found: services.Found) -> str:
    return "\n".join(_of_services(found))


def _of_services(found: services.Found) -> Iterator[str]:
    memory = [
        (
            each.proxy,
            str(each.programs),
            each.state,
            str(each.processes),
            f"{each.in_all / KIB_A_MIB:.1f}",
        )
        for each in found.memory
    ]
    yield _table(("", "programs", "state", "processes", "MiB PSS in all"), memory)
    starts: Dict[str, List[float]] = defaultdict(list)
    for start in found.starts:
        starts[start.proxy].append(start.seconds)
    yield _table(("", "ms until all ports accept", "starts"), list(_times(starts)))
    reloads: Dict[str, List[float]] = defaultdict(list)
    for reload in found.reloads:
        reloads[reload.proxy].append(reload.seconds)
    yield _table(
        ("", "ms from SIGHUP to the answer of a new endpoint", "reloads"), list(_times(reloads))
    )
    idle = [
        (each.proxy, str(each.processes), f"{each.seconds:.0f}", str(each.woken), str(each.lookups))
        for each in found.idle
    ]
    yield _table(("", "processes", "idle for s", "wake-ups", "those for lookups"), idle)
    rates = []
    for name in (services.LISTENER, services.LISTENERS):
        own = summary.of(found.rates, "short", name)
        ratio = summary.ratio(found.rates, "short", summary.rate, name, services.LISTENER)
        rates.append((name, _number(summary.median_of(own, summary.rate), 0), str(ratio or "")))
    yield _table(
        (f"{services.SHARED} workers", "connections/s", f"rate: to {services.LISTENER}"), rates
    )


def _times(found: Dict[str, List[float]]) -> Iterator[Sequence[str]]:
    for proxy, seconds in found.items():
        yield proxy, f"{median(seconds) * 1e3:.0f}", str(len(seconds))


def _busy(results: Results) -> Iterator[str]:
    if not results.samples:
        return
    yield "### What kept the machine busy\n"
    yield "Cores in use by each party, medians.\n"
    rows = []
    for load in LOADS:
        for proxy in ROWS:
            own = summary.of(results.samples, load.name, proxy)
            if own:
                rows.append(
                    (
                        load.title,
                        proxy,
                        _number(summary.median_of(own, lambda sample: sample.proxy_cores), 2),
                        _number(summary.median_of(own, lambda sample: sample.load_cores), 2),
                        _number(summary.median_of(own, lambda sample: sample.backend_cores), 2),
                    )
                )
    yield _table(("load", "", "proxy", "load generator", "backend"), rows)


def _errors(results: Results) -> str:
    errors = targets.all_errors(results)
    if not errors:
        return "Errors: none.\n"
    return "\n".join(["**Errors:**\n", *(f"- {error}" for error in errors), ""])


def _rounds(samples: Sequence[Sample]) -> int:
    return 1 + max((sample.round for sample in samples), default=-1)


def _number(value: Optional[float], digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
