"""The scoreboard as a table that a person can read."""

from __future__ import annotations

from typing import Iterable, List, Optional, Tuple

from vsock_proxy.endpoint.addresses import host_of
from vsock_proxy.observing.peers import peer_name
from vsock_proxy.observing.scoreboard import FAILURES, Row, State
from vsock_proxy.settings import Endpoint, format_address

HEADINGS = (
    "worker",
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
WITHOUT_CLIENT = (State.ABSENT, State.STARTING, State.IDLE)
NANOSECONDS = 1_000_000_000


def table(rows: Iterable[Row], now: int) -> List[str]:
    """One line a worker, then the totals; now is a time.monotonic_ns()."""
    known = list(rows)
    lines = [HEADINGS] + [_line(row, now) for row in known]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    texts = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    return [*texts, totals(known)]


def totals(rows: Iterable[Row]) -> str:
    """What all workers together have done since the start."""
    known = list(rows)
    causes = [
        f"{sum(row.failures[index] for row in known)} {cause}"
        for index, cause in enumerate(FAILURES.values())
    ]
    return (
        f"{sum(row.served for row in known)} connections served, "
        f"{sum(row.failed for row in known)} failed ({', '.join(causes)}), "
        f"{sum(row.gone for row in known)} with the client gone before, "
        f"{sum(row.total_up for row in known)} bytes up, "
        f"{sum(row.total_down for row in known)} bytes down"
    )


def cut_short(row: Row, endpoint: Endpoint, now: int) -> Optional[str]:
    """The line for the connection of a worker that died, None if that had none or has one."""
    if row.state in WITHOUT_CLIENT:
        return None
    client = peer_name((row.peer_cid, row.peer_port))
    if row.state is State.CONNECTING:
        return f"{client} closed: its worker died before there was a connection to {endpoint}"
    return (
        f"{client} -> {format_address(host_of(row.address), endpoint.port)} ended: "
        f"{row.up} bytes up, {row.down} bytes down, "
        f"{(now - row.since) / NANOSECONDS:.3f} s, worker died"
    )


def _line(row: Row, now: int) -> Tuple[str, ...]:
    serves = row.state not in WITHOUT_CLIENT
    return (
        str(row.number),
        str(row.pid) if row.pid else "-",
        "draining" if serves and row.drains else str(row.state),
        f"{max(0, now - row.since) / NANOSECONDS:.1f}" if row.since else "-",
        peer_name((row.peer_cid, row.peer_port)) if serves else "-",
        host_of(row.address) if serves and row.state is not State.CONNECTING else "-",
        # A worker that died has left those of the connection it had.
        str(row.up if serves else 0),
        str(row.down if serves else 0),
        str(row.served),
        str(row.failed),
    )
