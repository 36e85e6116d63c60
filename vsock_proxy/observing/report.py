"""The scoreboard as a table that a person can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

from vsock_proxy.endpoint.addresses import host_of
from vsock_proxy.observing.peers import peer_name
from vsock_proxy.observing.scoreboard import FAILURES, Row, State
from vsock_proxy.settings import Endpoint, format_address

HEADINGS = (
    "worker",
    "service",
    "pid",
    "state",
    "for s",
    "client",
    "endpoint",
    "up",
    "down",
    "served",
    "failed",
)
SERVICE = HEADINGS.index("service")
WITHOUT_CLIENT = (State.ABSENT, State.STARTING, State.IDLE)
NANOSECONDS = 1_000_000_000


def worker_name(service: Optional[str], number: int) -> str:
    """`2`, or `8001/2` for a worker that a service has of its own."""
    return str(number) if service is None else f"{service}/{number}"


@dataclass(frozen=True)
class Staff:
    """The workers of one pool at one moment.

    services: the names of those that they serve; Row.route is a place in it.
    own: whether it is one service, which has these workers of its own.
    retired: whether another pool has taken this one's place.
    endpoints: where those services lead, in the same order.
    """

    services: Tuple[str, ...]
    own: bool
    retired: bool
    rows: Tuple[Row, ...]
    endpoints: Tuple[Endpoint, ...]


@dataclass(frozen=True)
class Totals:
    """What workers have done together; those that have ended count too.

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
        """These, and what the workers of those slots have done."""
        known = list(rows)
        return Totals(
            self.served + sum(row.served for row in known),
            tuple(map(sum, zip(self.failures, *(row.failures for row in known)))),
            self.gone + sum(row.gone for row in known),
            self.up + sum(row.total_up for row in known),
            self.down + sum(row.total_down for row in known),
        )

    def __str__(self) -> str:
        causes = [f"{number} {cause}" for number, cause in zip(self.failures, FAILURES.values())]
        return (
            f"{self.served} connections served, "
            f"{self.failed} failed ({', '.join(causes)}), "
            f"{self.gone} with the client gone before, "
            f"{self.up} bytes up, {self.down} bytes down"
        )


NOTHING = Totals()


def table(pools: Iterable[Staff], now: int, before: Totals = NOTHING) -> List[str]:
    """One line a worker, then the totals; now is a time.monotonic_ns().

    Where there are several services, a column says whose client a worker has, or whose it is alone.
    before: what was done in pools that have ended.
    """
    known = list(pools)
    several = len({name for pool in known for name in pool.services}) > 1
    lines = [HEADINGS] + [
        _line(pool, row, now)
        for pool in known
        for row in pool.rows
        # Who has left a retired pool has no successor there.
        if not (pool.retired and row.state is State.ABSENT)
    ]
    columns = [column for column in range(len(HEADINGS)) if several or column != SERVICE]
    widths = {column: max(len(line[column]) for line in lines) for column in columns}
    texts = [
        "  ".join(line[column].rjust(width) for column, width in widths.items()) for line in lines
    ]
    return [*texts, str(before.plus(row for pool in known for row in pool.rows))]


def cut_short(row: Row, service: Optional[str], endpoint: Endpoint, now: int) -> Optional[str]:
    """The line for the connection of a worker that died, None if that had none or has one.

    service: the name of the one that it was of; None: there is only one.
    """
    if row.state in WITHOUT_CLIENT:
        return None
    client = peer_name(row.peer)
    if service is not None:
        client = f"{service}: {client}"
    if row.state is State.CONNECTING:
        return f"{client} closed: its worker died before there was a connection to {endpoint}"
    # Of several addresses, the one that it had.
    connected = format_address(host_of(row.address), endpoint.port) if endpoint.is_tcp else endpoint
    return (
        f"{client} -> {connected} ended: "
        f"{row.up} bytes up, {row.down} bytes down, "
        f"{(now - row.since) / NANOSECONDS:.3f} s, worker died"
    )


def _line(pool: Staff, row: Row, now: int) -> Tuple[str, ...]:
    serves = row.state not in WITHOUT_CLIENT
    endpoint = pool.endpoints[row.route]
    connected = host_of(row.address) if endpoint.is_tcp else str(endpoint)
    return (
        worker_name(pool.services[0] if pool.own else None, row.number),
        pool.services[row.route] if serves or pool.own else "-",
        str(row.pid) if row.pid else "-",
        "draining" if serves and row.drains else str(row.state),
        f"{max(0, now - row.since) / NANOSECONDS:.1f}" if row.since else "-",
        peer_name(row.peer) if serves else "-",
        connected if serves and row.state is not State.CONNECTING else "-",
        # A worker that died has left those of the connection it had.
        str(row.up if serves else 0),
        str(row.down if serves else 0),
        str(row.served),
        str(row.failed),
    )
