"""Figures as Prometheus and OpenMetrics want them.

Only the exporter imports this, because nothing else needs prometheus_client. It uses what writes
the two formats, but not the registry of the process and not the server.
"""

from __future__ import annotations

import platform
from itertools import accumulate
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry

from vsock_proxy import __version__
from vsock_proxy.observing.account import Account, PoolView, Scene
from vsock_proxy.observing.closing import NANOSECONDS, WITHOUT_CLIENT
from vsock_proxy.observing.measures import CONNECT_BOUNDS, DURATION_BOUNDS, RESULTS, Histogram
from vsock_proxy.observing.scoreboard import Row, State
from vsock_proxy.observing.untold import LEFT_OUT, NOT_ACCEPTED, UNWRITTEN, Untold
from vsock_proxy.observing.vitals import Vitals

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
DRAINING = "draining"
STATES = (*(str(state) for state in State), DRAINING)


def exposition(accept: str, scene: Scene, untold: Untold, vitals: Vitals) -> Tuple[bytes, str]:
    """All metrics, and their content type. accept: the types that the scraper takes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(list(families(scene, untold, vitals))))
    types = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    if OPENMETRICS in types:
        text = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), PLAIN


class _Collector:
    """Gives a registry families that are made already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families


def families(scene: Scene, untold: Untold, vitals: Vitals) -> Iterator[Metric]:
    """Each metric with all its series."""
    account = scene.account()
    yield from _of_services(account)
    yield _workers([*scene.pools, *scene.ending])
    saturated = CounterMetricFamily(
        "vsock_proxy_saturated_seconds",
        "Time during which all workers of the pool were busy, so that further clients waited.",
        labels=["pool"],
    )
    for name, nanoseconds in account.saturated.items():
        saturated.add_metric([name], nanoseconds / NANOSECONDS)
    yield saturated
    yield from _of_lookups(account)
    yield from _of_processes(untold, vitals)


def _of_services(account: Account) -> Iterator[Metric]:
    connections = CounterMetricFamily(
        "vsock_proxy_connections",
        "Connections of clients by how they turned out; served once the endpoint is connected.",
        labels=["service", "result"],
    )
    moved = CounterMetricFamily(
        "vsock_proxy_bytes",
        "Bytes relayed; up is from the client to the endpoint.",
        labels=["service", "direction"],
    )
    connect = HistogramMetricFamily(
        "vsock_proxy_connect_duration_seconds",
        "Time from the acceptance of a client until its endpoint was connected.",
        labels=["service"],
    )
    duration = HistogramMetricFamily(
        "vsock_proxy_connection_duration_seconds",
        "Time from the acceptance of a client that was served until the end of its connection.",
        labels=["service"],
    )
    for name, measured in account.services.items():
        for result, count in zip(RESULTS.values(), measured.results):
            connections.add_metric([name, _word(result)], count)
        moved.add_metric([name, "up"], measured.up)
        moved.add_metric([name, "down"], measured.down)
        _add_histogram(connect, name, CONNECT_BOUNDS, measured.connect)
        _add_histogram(duration, name, DURATION_BOUNDS, measured.duration)
    yield from (connections, moved, connect, duration)


def _add_histogram(
    family: HistogramMetricFamily, name: str, bounds: Sequence[int], measured: Histogram
) -> None:
    names = [*(str(bound / NANOSECONDS) for bound in bounds), "+Inf"]
    buckets = list(zip(names, accumulate(measured.counts)))
    family.add_metric([name], buckets, measured.total / NANOSECONDS)


def _workers(pools: Iterable[PoolView]) -> Metric:
    workers = GaugeMetricFamily(
        "vsock_proxy_workers",
        "Workers by what they do; draining ones have a connection and end with it.",
        labels=["pool", "state"],
    )
    # Pools of one name count as one: the pool in force, and those that it has replaced.
    states: Dict[str, List[str]] = {}
    for pool in pools:
        states.setdefault(pool.name, []).extend(_states(pool))
    for name, found in states.items():
        for state in STATES:
            workers.add_metric([name, _word(state)], found.count(state))
    return workers


def _states(pool: PoolView) -> List[str]:
    rows = pool.board.rows()
    retired = pool.board.retired
    # A worker that has left a retired pool gets no successor there.
    return [_state(row) for row in rows if not (retired and row.state is State.ABSENT)]


def _state(row: Row) -> str:
    return DRAINING if row.drains and row.state not in WITHOUT_CLIENT else str(row.state)


def _of_lookups(account: Account) -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "vsock_proxy_dns_lookups",
        "Lookups of the name of the service's endpoint, by result.",
        labels=["service", "result"],
    )
    last = GaugeMetricFamily(
        "vsock_proxy_dns_last_success_timestamp_seconds",
        "When DNS last gave an address of the service's endpoint that is permitted.",
        labels=["service"],
    )
    for name, known in account.lookups.items():
        lookups.add_metric([name, "success"], known.resolved)
        lookups.add_metric([name, "failure"], known.unresolved)
        lookups.add_metric([name, "not_permitted"], known.not_permitted)
        if known.resolved_at:
            last.add_metric([name], known.resolved_at / NANOSECONDS)
    yield from (lookups, last)


def _of_processes(untold: Untold, vitals: Vitals) -> Iterator[Metric]:
    respawns = CounterMetricFamily(
        "vsock_proxy_respawns",
        "Processes that were started to replace one that had ended.",
        labels=["process"],
    )
    for process, count in vitals.respawns.items():
        respawns.add_metric([process], count)
    totals = untold.totals()
    lines = CounterMetricFamily(
        "vsock_proxy_log_lines_lost",
        "Lines missing from the log: over the limit of lines a second, or impossible to write.",
        labels=["reason"],
    )
    lines.add_metric(["limit"], totals[LEFT_OUT])
    lines.add_metric(["unwritten"], totals[UNWRITTEN])
    accepts = CounterMetricFamily(
        "vsock_proxy_accept_failures",
        "Attempts to accept a client that failed.",
        value=totals[NOT_ACCEPTED],
    )
    build = InfoMetricFamily(
        "vsock_proxy_build",
        "The version of the program and of its Python.",
        value={"version": __version__, "python": platform.python_version()},
    )
    started = GaugeMetricFamily(
        "process_start_time_seconds", "When the master was started.", value=vitals.started
    )
    yield from (respawns, lines, accepts, build, started)


def _word(text: str) -> str:
    """A word of the log as the value of a label."""
    return text.replace(" ", "_").replace("-", "_")
