"""The scoreboard as a table that a person can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

from vsock_proxy.endpoint.addresses import host_of
from vsock_proxy.observing.closing import (
    NANOSECONDS,
    WITHOUT_CLIENT,
    connected_to,
    connection_name,
)
from vsock_proxy.observing.peers import peer_name
from vsock_proxy.observing.scoreboard import FAILURES, Row, State
from vsock_proxy.settings import Endpoint

HEADINGS = (
    "worker",
    "service",
    "pid",
    "state",
    "for s",
    "connection",
    "client",
    "endpoint",
    "up",
    "down",
    "served",
    "failed",
)
SERVICE = HEADINGS.index("service")

# A line of the log, and its values for programs.
Line = Tuple[str, Dict[str, object]]


def worker_name(service: Optional[str], number: int) -> str:
    """`2`; or `8001/2` for a worker of service 8001's own."""
    return str(number) if service is None else f"{service}/{number}"


@dataclass(frozen=True)
class Staff:
    """The workers of one pool at one moment.

    services: the names of the services that they serve; Row.route is an index of it.
    own: whether they serve one service with workers of its own.
    retired: whether another pool has replaced this one.
    endpoints: those of the services, in the same order.
    """

    services: Tuple[str, ...]
    own: bool
    retired: bool
    rows: Tuple[Row, ...]
    endpoints: Tuple[Endpoint, ...]


@dataclass(frozen=True)
class Totals:
    """What all workers have done together, also those that have ended.

    failures are in the order of FAILURES.
    """

    served: int = 0
    failures: Tuple[int, ...] = (0,) * len(FAILURES)
    gone: int = 0
    up: int = 0
    down: int = 0

    @property
    def failed(self) -> int:
        return sum(self.failures)

    def plus(self, rows: Iterable[Row]) -> Totals:
        """These totals, and what the workers of these slots have done."""
        known = list(rows)
        return Totals(
            self.served + sum(row.served for row in known),
            tuple(map(sum, zip(self.failures, *(row.failures for row in known)))),
            self.gone + sum(row.gone for row in known),
            self.up + sum(row.total_up for row in known),
            self.down + sum(row.total_down for row in known),
        )

    @property
    def known(self) -> Dict[str, object]:
        """The totals as values for programs, for a line that shows them in its text."""
        return {
            "served": self.served,
            "failed": self.failed,
            "bytes_up": self.up,
            "bytes_down": self.down,
        }

    def __str__(self) -> str:
        causes = [f"{number} {cause}" for number, cause in zip(self.failures, FAILURES.values())]
        return (
            f"{self.served} connections served, "
            f"{self.failed} failed ({', '.join(causes)}), "
            f"{self.gone} with the client gone before, "
            f"{self.up} bytes up, {self.down} bytes down"
        )


NOTHING = Totals()


def table(pools: Iterable[Staff], now: int, before: Totals = NOTHING) -> List[Line]:
    """One line a worker, then the totals; now is a time.monotonic_ns().

    With several services, a column names the service of a worker's client, or of its own workers.
    before: what was done in pools that have ended.
    """
    known = list(pools)
    several = len({name for pool in known for name in pool.services}) > 1
    workers = [
        (pool, row)
        for pool in known
        for row in pool.rows
        # A worker that has left a retired pool gets no successor there.
        if not (pool.retired and row.state is State.ABSENT)
    ]
    lines = [HEADINGS] + [_cells(pool, row, now) for pool, row in workers]
    columns = [column for column in range(len(HEADINGS)) if several or column != SERVICE]
    widths = {column: max(len(line[column]) for line in lines) for column in columns}
    heading, *texts = [
        "  ".join(line[column].rjust(width) for column, width in widths.items()) for line in lines
    ]
    totals = before.plus(row for pool in known for row in pool.rows)
    return [
        (heading, {"event": "scoreboard"}),
        *((text, _known(pool, row, now)) for text, (pool, row) in zip(texts, workers)),
        (str(totals), {"event": "scoreboard_totals", **totals.known}),
    ]


def _cells(pool: Staff, row: Row, now: int) -> Tuple[str, ...]:
    serves = row.state not in WITHOUT_CLIENT
    endpoint = pool.endpoints[row.route]
    connected = host_of(row.address) if endpoint.is_tcp else str(endpoint)
    return (
        _worker(pool, row),
        pool.services[row.route] if serves or pool.own else "-",
        str(row.pid) if row.pid else "-",
        _state(row),
        f"{max(0, now - row.since) / NANOSECONDS:.1f}" if row.since else "-",
        connection_name(row.serial, row.connections) if serves else "-",
        peer_name(row.peer) if serves else "-",
        connected if serves and row.state is not State.CONNECTING else "-",
        # The row of a dead worker still has the bytes of its last connection.
        str(row.up if serves else 0),
        str(row.down if serves else 0),
        str(row.served),
        str(row.failed),
    )


def _known(pool: Staff, row: Row, now: int) -> Dict[str, object]:
    """The values for programs. What a worker lacks, such as a client, is left out."""
    serves = row.state not in WITHOUT_CLIENT
    known: Dict[str, object] = {
        "event": "scoreboard_worker",
        "worker": _worker(pool, row),
        "pid": row.pid or None,
        "state": _state(row),
        "seconds": max(0, now - row.since) / NANOSECONDS if row.since else None,
        "served": row.served,
        "failed": row.failed,
    }
    if serves or pool.own:
        known["service"] = pool.services[row.route]
    if serves:
        known["connection"] = connection_name(row.serial, row.connections)
        known["peer"] = peer_name(row.peer)
        known["bytes_up"], known["bytes_down"] = row.up, row.down
        if row.state is not State.CONNECTING:
            known["upstream"] = connected_to(row, pool.endpoints[row.route])
    return known


def _worker(pool: Staff, row: Row) -> str:
    return worker_name(pool.services[0] if pool.own else None, row.number)


def _state(row: Row) -> str:
    return "draining" if row.drains and row.state not in WITHOUT_CLIENT else str(row.state)
