"""The figures this proxy is to reach, and whether a run has reached them.

Each is a ratio to a peer in the same run, because only that survives a change of machine, or an
absolute bound where an operator would feel it. A figure that a run did not measure is shown as
such, never as met.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Dict, Iterator, List, Optional

from . import metrics, services, summary
from .footprint import FRESH, HAS_SERVED, Memory, with_workers
from .proxies import OURS, PROXYD, SOCAT
from .results import Results
from .rounds import LOADS, Sample
from .ways import HYBRID, TO_HYBRID, TO_VSOCK, VSOCK_TO_TCP

KIB_A_MIB = 1024
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Figure:
    """One line of the table; `met` is None where nothing was measured."""

    name: str
    target: str
    measured: str
    met: Optional[bool]


@dataclass(frozen=True)
class Bound:
    """A ratio of ours to a peer's that must not fall below (or, for a cost, exceed) a limit."""

    load: str
    cost: bool
    peer: str
    limit: float


HYBRID_BOUNDS = (
    Bound("short", False, PROXYD, 1.20),
    Bound("short", True, PROXYD, 0.85),
    Bound("pingpong", False, PROXYD, 1.00),
    Bound("pingpong", True, PROXYD, 1.15),
    Bound("up", False, SOCAT, 1.05),
    Bound("up", True, SOCAT, 0.90),
    Bound("down", False, SOCAT, 1.10),
    Bound("down", False, PROXYD, 0.95),
)
# In an emulated machine the interpreter weighs more than the kernel's work: only bulk is promised.
VSOCK_BOUNDS = (
    Bound("up", False, SOCAT, 1.00),
    Bound("up", False, PROXYD, 1.00),
    Bound("down", False, SOCAT, 1.00),
    Bound("down", False, PROXYD, 1.00),
)
TO_HYBRID_BOUNDS = (
    Bound("short", False, PROXYD, 1.20),
    Bound("short", True, PROXYD, 0.85),
    Bound("pingpong", False, PROXYD, 1.00),
    Bound("up", False, SOCAT, 1.05),
    Bound("down", False, SOCAT, 1.05),
)
TO_VSOCK_BOUNDS = (
    Bound("up", False, SOCAT, 1.05),
    Bound("down", False, SOCAT, 1.05),
)
BOUNDS = {
    HYBRID.name: HYBRID_BOUNDS,
    VSOCK_TO_TCP.name: VSOCK_BOUNDS,
    TO_HYBRID.name: TO_HYBRID_BOUNDS,
    TO_VSOCK.name: TO_VSOCK_BOUNDS,
}
SCALE_AT_LEAST = 0.95
FRESH_AT_MOST_MIB = 1.0
SERVED_AT_MOST_MIB = 1.3
HELD_AT_MOST_SECONDS = 3.0
START_AT_MOST_SECONDS = 0.120
WAKE_UPS_MORE_AT_MOST = 1.0
# Where each object is counted (until CPython 3.12 made many immortal), each use may cost a page.
COUNTED_UNTIL = (3, 12)
OWN_POOLS_AT_MOST_MIB = {True: 150.0, False: 115.0}
ONE_POOL_AT_MOST_MIB = {True: 52.0, False: 40.0}
ALL_ACCEPT_AT_MOST_SECONDS = 0.250
RELOAD_AT_MOST_SECONDS = 0.100
LISTENERS_AT_LEAST = 0.95
# Of what it is without --metrics.
SCRAPED_WITHIN = 0.02
COUNTING_AT_MOST = 1.02


def figures(results: Results) -> List[Figure]:
    found = [_bound(results, bound) for bound in BOUNDS[results.way]]
    if results.way == HYBRID.name:
        found += [
            _scale(results),
            _memory(results, "idle memory at -w 100", FRESH, FRESH_AT_MOST_MIB),
            _memory(results, "memory at -w 100, having served", HAS_SERVED, SERVED_AT_MOST_MIB),
            *_held(results),
            _start(results),
            *_services(results),
            *_metrics(results),
        ]
    if results.way == VSOCK_TO_TCP.name:
        found.append(_wake_ups(results))
    return found


def all_errors(results: Results) -> List[str]:
    """Every error of a run in words; a run with any is void."""
    found = [f"{count} x {what}" for what, count in summary.errors(_all_samples(results)).items()]
    for held in results.held:
        found += [
            f"{count} x {held.proxy}, connections held open: {what}"
            for what, count in held.errors.items()
        ]
    return found


def _all_samples(results: Results) -> List[Sample]:
    rates = results.services.rates if results.services else []
    return [*results.samples, *results.scale, *results.metrics, *rates]


def _exact(found: summary.Ratio) -> str:
    """One digit more than the target has, lest a figure just missed looks as if it were met."""
    return f"{found.median:.3f} ({found.least:.2f} to {found.greatest:.2f})"


def _not_measured(name: str, target: str) -> Figure:
    return Figure(name, target, "not measured", None)


def _bound(results: Results, bound: Bound) -> Figure:
    load = next(load for load in LOADS if load.name == bound.load)
    what = f"CPU, {load.cpu_unit.split('/')[1]}" if bound.cost else load.rate_unit
    name = f"{load.title}: {what}"
    target = f"{'at most' if bound.cost else 'at least'} {bound.limit:.2f} x {bound.peer}"
    value = summary.cpu if bound.cost else summary.rate
    found = summary.ratio(results.samples, bound.load, value, OURS, bound.peer)
    if found is None:
        return _not_measured(name, target)
    met = found.median <= bound.limit if bound.cost else found.median >= bound.limit
    few = "" if found.rounds >= MIN_ROUNDS else f", of {found.rounds} rounds only"
    return Figure(name, target, f"{_exact(found)}{few}", met)


def _scale(results: Results) -> Figure:
    name, target = "short connections at -w 1000", f"at least {SCALE_AT_LEAST:.2f} x those at -w 4"
    found = summary.ratio(results.scale, "short", summary.rate, with_workers(1000), with_workers(4))
    if found is None:
        return _not_measured(name, target)
    return Figure(name, target, _exact(found), found.median >= SCALE_AT_LEAST)


def _memory(results: Results, name: str, state: str, limit: float) -> Figure:
    target = f"at most {limit:.1f} MiB PSS a worker"
    found = next((m for m in results.memory if _is_hundred(m) and m.state == state), None)
    if found is None or found.a_worker is None:
        return _not_measured(name, target)
    each = found.a_worker / KIB_A_MIB
    return Figure(name, target, f"{each:.2f} MiB", each <= limit)


def _is_hundred(memory: Memory) -> bool:
    return memory.proxy == OURS and memory.workers == 100


def _held(results: Results) -> Iterator[Figure]:
    name = "-w 1000: 1,000 connections open at once"
    held = [each for each in results.held if each.proxy == OURS and each.wanted == 1000]
    up = f"at most {HELD_AT_MOST_SECONDS:.0f} s from the start to the last echo"
    if not held:
        yield _not_measured(name, "each echoes")
        yield _not_measured(name, up)
        return
    echoed = min(each.echoed for each in held)
    yield Figure(name, "each echoes", f"{echoed} echoed", echoed == 1000)
    seconds = median(each.seconds for each in held)
    yield Figure(name, up, f"{seconds:.2f} s", echoed == 1000 and seconds < HELD_AT_MOST_SECONDS)


def _start(results: Results) -> Figure:
    name, target = "start to accepting, -w 4", f"at most {START_AT_MOST_SECONDS * 1e3:.0f} ms"
    starts = [s.connected for s in results.starts if s.proxy == OURS and s.workers == 4]
    if not starts:
        return _not_measured(name, target)
    return Figure(name, target, _spread(starts), median(starts) <= START_AT_MOST_SECONDS)


def _services(results: Results) -> Iterator[Figure]:
    many = f"{services.SERVICES} services"
    own, shared = services.OWN_POOLS, services.ONE_POOL
    each = f"{many} with {services.WORKERS_EACH} workers each"
    sharing = f"{many} that share {services.SHARED} workers"
    yield _services_memory(results, f"memory of {each}", own, OWN_POOLS_AT_MOST_MIB)
    yield _services_memory(results, f"memory of {sharing}", shared, ONE_POOL_AT_MOST_MIB)
    yield _services_start(results, f"start of {each} to accepting on all ports", own)
    yield _services_reload(results, f"reload of one of {each}", own)
    yield _services_idle(results, f"wake-ups of {each}, idle, but for lookups", own)
    yield _listeners(results, f"short connections over {services.LISTENERS} of one pool")


def _services_memory(results: Results, name: str, proxy: str, limits: Dict[bool, float]) -> Figure:
    version = results.machine["Python"].split(".")
    limit = limits[tuple(map(int, version[:2])) < COUNTED_UNTIL]
    target = f"at most {limit:.0f} MiB PSS in all"
    known = results.services.memory if results.services else []
    sizes = [each.in_all for each in known if (each.proxy, each.state) == (proxy, FRESH)]
    if not sizes:
        return _not_measured(name, target)
    return Figure(name, target, f"{sizes[0] / KIB_A_MIB:.1f} MiB", sizes[0] / KIB_A_MIB <= limit)


def _services_start(results: Results, name: str, proxy: str) -> Figure:
    target = f"at most {ALL_ACCEPT_AT_MOST_SECONDS * 1e3:.0f} ms"
    known = results.services.starts if results.services else []
    found = [each.seconds for each in known if each.proxy == proxy]
    if not found:
        return _not_measured(name, target)
    return Figure(name, target, _spread(found), median(found) <= ALL_ACCEPT_AT_MOST_SECONDS)


def _services_reload(results: Results, name: str, proxy: str) -> Figure:
    target = f"at most {RELOAD_AT_MOST_SECONDS * 1e3:.0f} ms, others not disturbed"
    known = results.services.reloads if results.services else []
    found = [each for each in known if each.proxy == proxy]
    if not found:
        return _not_measured(name, target)
    seconds = [each.seconds for each in found]
    harm = sum(each.disturbed + each.replaced for each in found)
    measured = f"{_spread(seconds)}, {harm or 'none'} disturbed"
    return Figure(name, target, measured, median(seconds) <= RELOAD_AT_MOST_SECONDS and not harm)


def _services_idle(results: Results, name: str, proxy: str) -> Figure:
    known = results.services.idle if results.services else []
    found = [each for each in known if each.proxy == proxy]
    if not found:
        return _not_measured(name, "none")
    (idle,) = found
    measured = f"{idle.woken} of {idle.processes} processes in {idle.seconds:.0f} s"
    return Figure(name, "none", measured, not idle.woken)


def _listeners(results: Results, name: str) -> Figure:
    target = f"at least {LISTENERS_AT_LEAST:.2f} x those over one"
    known = results.services.rates if results.services else []
    found = summary.ratio(known, "short", summary.rate, services.LISTENERS, services.LISTENER)
    if found is None:
        return _not_measured(name, target)
    return Figure(name, target, _exact(found), found.median >= LISTENERS_AT_LEAST)


def _metrics(results: Results) -> Iterator[Figure]:
    scraped, counted = metrics.SCRAPED, metrics.COUNTED
    beside = f"with {metrics.A_SECOND} scrapes a second"
    yield _metric(results, f"rate {beside}", summary.rate, scraped, 1 - SCRAPED_WITHIN, True)
    yield _metric(results, f"p99 {beside}", summary.p99, scraped, 1 + SCRAPED_WITHIN, False)
    yield _metric(results, "CPU with --metrics", summary.cpu, counted, COUNTING_AT_MOST, False)


def _metric(
    results: Results, what: str, value: summary.Value, proxy: str, limit: float, at_least: bool
) -> Figure:
    name = f"short connections: {what}"
    target = f"at {'least' if at_least else 'most'} {limit:.2f} x that without --metrics"
    found = summary.ratio(results.metrics, "short", value, proxy, OURS)
    if found is None:
        return _not_measured(name, target)
    met = found.median >= limit if at_least else found.median <= limit
    return Figure(name, target, _exact(found), met)


def _spread(seconds: List[float]) -> str:
    least, greatest = min(seconds) * 1e3, max(seconds) * 1e3
    return f"{median(seconds) * 1e3:.0f} ms ({least:.0f} to {greatest:.0f})"


def _wake_ups(results: Results) -> Figure:
    name = "context switches of workers, a connection"
    target = f"at -w 100 at most {WAKE_UPS_MORE_AT_MOST:.0f} more than at -w 4"
    few = [s.a_connection for s in results.switches if s.workers == 4]
    many = [s.a_connection for s in results.switches if s.workers == 100]
    if not few or not many:
        return _not_measured(name, target)
    measured = f"{median(few):.2f} at -w 4, {median(many):.2f} at -w 100"
    return Figure(name, target, measured, median(many) - median(few) <= WAKE_UPS_MORE_AT_MOST)
