"""The four loads, put on every proxy in turn.

Absolute figures of a shared machine drift by more than the proxies differ, so all proxies run at
once, idle ones cost nothing, and within a round each load visits them one right after the other,
in an order that rotates from round to round. A figure is compared within its round; what is
reported is the median of the rounds' ratios. Each round starts its proxies again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from .accounting import Group
from .native import Backend, Outcome, Programs, run_load
from .proxies import Proxy, Running, Site, started

DIRECT = "direct, no proxy"
WARM_UP_SECONDS = 0.2
SETTLE_SECONDS = 0.05
SETTLE_LIMIT_SECONDS = 2.0
MIB = 1 << 20
GIB = 1 << 30

Report = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """One of the loads, and how its figures are spoken of."""

    name: str
    title: str
    rate_unit: str
    cpu_unit: str
    bulk: bool = False

    def rate(self, outcome: Outcome, size: int) -> float:
        each = size / MIB if self.bulk else 1.0
        return outcome.operations * each / outcome.seconds

    def cpu(self, seconds: float, outcome: Outcome, size: int) -> float:
        """Seconds per GiB of a bulk load, microseconds per operation of the others."""
        if self.bulk:
            return seconds * GIB / (outcome.operations * size)
        return seconds * 1e6 / outcome.operations


LOADS = (
    Load("short", "short connections", "connections/s", "us/connection"),
    Load("pingpong", "ping-pong", "round trips/s", "us/round trip"),
    Load("up", "bulk up", "MiB/s", "s/GiB", bulk=True),
    Load("down", "bulk down", "MiB/s", "s/GiB", bulk=True),
)


@dataclass(frozen=True)
class Sample:
    """One load on one proxy in one round; the `..._cores` are how many each party kept busy."""

    round: int
    load: str
    proxy: str
    rate: float
    median_us: float
    p99_us: float
    cpu: Optional[float]
    proxy_cores: Optional[float]
    load_cores: float
    backend_cores: Optional[float]
    errors: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What a measurement needs besides the proxies."""

    programs: Programs
    backend: Backend
    site: Site
    seconds: float
    size: int
    report: Report


def run_rounds(
    bench: Bench, proxies: Sequence[Proxy], loads: Sequence[Load], rounds: int, direct: bool = True
) -> List[Sample]:
    samples: List[Sample] = []
    for number in range(rounds):
        with ExitStack() as stack:
            running = [
                stack.enter_context(started(bench.site, p, bench.backend.place)) for p in proxies
            ]
            for each in running:
                each.await_ready()
            for load in loads:
                for sample in _visit(bench, running, load, number, direct):
                    bench.report(describe(sample))
                    samples.append(sample)
    return samples


def _visit(
    bench: Bench, running: Sequence[Running], load: Load, number: int, direct: bool
) -> Iterator[Sample]:
    turn = number % len(running)
    for each in [*running[turn:], *running[:turn]]:
        if each.proxy.loads is not None and load.name not in each.proxy.loads:
            continue
        with each.proxy.meanwhile(each):
            sample = measure(bench, load, number, each.name, each.target, each.group)
        yield sample
    if direct:
        target = bench.backend.place.target
        yield measure(bench, load, number, DIRECT, target, Group(None))


def measure(bench: Bench, load: Load, number: int, name: str, target: str, group: Group) -> Sample:
    run_load(bench.programs, load.name, target, seconds=WARM_UP_SECONDS, size=bench.size)
    proxy_before, backend_before = _settled(group), bench.backend.group.cpu_seconds()
    outcome = run_load(bench.programs, load.name, target, seconds=bench.seconds, size=bench.size)
    proxy_used = _difference(proxy_before, _settled(group))
    backend_used = _difference(backend_before, bench.backend.group.cpu_seconds())
    done = outcome.operations > 0
    return Sample(
        round=number,
        load=load.name,
        proxy=name,
        rate=load.rate(outcome, bench.size),
        median_us=outcome.median_us,
        p99_us=outcome.p99_us,
        cpu=load.cpu(proxy_used, outcome, bench.size) if done and proxy_used is not None else None,
        proxy_cores=None if proxy_used is None else proxy_used / outcome.seconds,
        load_cores=outcome.cpu_seconds / outcome.seconds,
        backend_cores=None if backend_used is None else backend_used / outcome.seconds,
        errors=outcome.errors,
    )


def describe(sample: Sample) -> str:
    load = next(load for load in LOADS if load.name == sample.load)
    cpu = "" if sample.cpu is None else f"  {sample.cpu:8.2f} {load.cpu_unit}"
    errors = "".join(f"  ERRORS {count} x {what}" for what, count in sample.errors.items())
    rate = f"{sample.rate:10.1f} {load.rate_unit:14}"
    return f"round {sample.round + 1}  {load.title:17} {sample.proxy:31} {rate}{cpu}{errors}"


def _settled(group: Group) -> Optional[float]:
    """The group's CPU time once it no longer grows: what a load has begun is done with."""
    deadline = time.monotonic() + SETTLE_LIMIT_SECONDS
    before = group.cpu_seconds()
    while before is not None and time.monotonic() < deadline:
        time.sleep(SETTLE_SECONDS)
        after = group.cpu_seconds()
        if after == before:
            break
        before = after
    return before


def _difference(before: Optional[float], after: Optional[float]) -> Optional[float]:
    return None if before is None or after is None else after - before
