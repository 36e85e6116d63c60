"""What the workers of a pool have done for each of its services, if there are metrics.

This is shared memory beside the scoreboard, with a row of 64-bit cells for each worker and service.
Only the worker writes its rows. A cell is stored whole, and nothing here is a system call. A row
outlives the process that wrote it.

A worker counts the bytes of all services in its slot (scoreboard.py). Two cells of a row tell how
many are of one service. LEFT is the service's total when the worker turned from it. BASE is the
worker's total minus the service's when it turned to it. For the service that ROUTE of the slot
names, the worker's total minus BASE counts. For all others, LEFT counts. To turn, a worker first
fills the cells that do not count yet. Then one store to ROUTE puts all of them in force. So
wherever the worker dies, no total goes back, and none counts twice.

A worker may turn while its cells are read. So a reader has an order: the worker's totals, then
ROUTE, then BASE, then LEFT. If the worker has turned since the reader had the totals, they are
older than BASE. Then the totals minus BASE are at most LEFT, and LEFT is right. So the reader takes
the greater of the two. That was true at some time during the read, so the next read gives no less.

The kernel gives memory at the first write or read. So a byte for each row says whether it was ever
written to, and no other row is read.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from dataclasses import dataclass
from operator import add
from typing import Iterator, List, Sequence, Tuple

from vsock_proxy.observing.closing import NANOSECONDS
from vsock_proxy.observing.scoreboard import (
    CLIENT_GONE,
    FAILURES,
    ROUTE,
    SERVED,
    TOTAL_DOWN,
    TOTAL_UP,
    Scoreboard,
)

CELL = 8

# Upper bounds, in nanoseconds. A connect() takes what the network takes, up to --connect-timeout.
# A connection may be a single request or last for days.
CONNECT_BOUNDS = tuple(
    round(seconds * NANOSECONDS)
    for seconds in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
)
DURATION_BOUNDS = tuple(
    round(seconds * NANOSECONDS)
    for seconds in (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 3600, 86400)
)

# How a connection can turn out, by the cell of the slot that also counts it, in that order.
RESULTS = dict(sorted({SERVED: "served", **FAILURES, CLIENT_GONE: "client gone"}.items()))

# The cells of a row: the results, in the order of the slot's cells,
FIRST_RESULT = min(RESULTS)
RESULT_CELLS = len(RESULTS)
# the bytes of each direction, in the order in which they are read (see above),
BASE_UP, BASE_DOWN, LEFT_UP, LEFT_DOWN = range(RESULT_CELLS, RESULT_CELLS + 4)
# when the last connect succeeded, and when one last failed, by time.monotonic_ns(),
CONNECTED_AT, FAILED_AT = range(RESULT_CELLS + 4, RESULT_CELLS + 6)
# and two histograms: each has a cell a bucket, the last without a bound, and one for the sum.
CONNECT = RESULT_CELLS + 6
CONNECT_SUM = CONNECT + len(CONNECT_BOUNDS) + 1
DURATION = CONNECT_SUM + 1
DURATION_SUM = DURATION + len(DURATION_BOUNDS) + 1
ROW = DURATION_SUM + 1
# For each direction: LEFT, BASE, and the cell of the slot with the worker's total.
BYTES = ((LEFT_UP, BASE_UP, TOTAL_UP), (LEFT_DOWN, BASE_DOWN, TOTAL_DOWN))
WRITTEN = b"\1"


@dataclass(frozen=True)
class Histogram:
    """counts: of each single bucket, the last without a bound; total: the sum of values, in ns."""

    counts: Tuple[int, ...]
    total: int

    def plus(self, other: Histogram) -> Histogram:
        return Histogram(_sums(self.counts, other.counts), self.total + other.total)


@dataclass(frozen=True)
class Measured:
    """What was done for one service.

    results: in the order of RESULTS.
    connect: how long each connect took. duration: how long each ended connection lasted.
    connected, failed: when the last connect succeeded, and when one last failed; 0: never.
    """

    results: Tuple[int, ...] = (0,) * RESULT_CELLS
    up: int = 0
    down: int = 0
    connect: Histogram = Histogram((0,) * (len(CONNECT_BOUNDS) + 1), 0)
    duration: Histogram = Histogram((0,) * (len(DURATION_BOUNDS) + 1), 0)
    connected: int = 0
    failed: int = 0

    def plus(self, other: Measured) -> Measured:
        return Measured(
            _sums(self.results, other.results),
            self.up + other.up,
            self.down + other.down,
            self.connect.plus(other.connect),
            self.duration.plus(other.duration),
            max(self.connected, other.connected),
            max(self.failed, other.failed),
        )


class Tally:
    """The row in which a worker counts for the service that it has turned to."""

    __slots__ = ("_row",)

    def __init__(self, row: memoryview) -> None:
        self._row = row

    def connected(self, took: int, now: int) -> None:
        """The endpoint is connected. took: nanoseconds."""
        row = self._row
        row[SERVED - FIRST_RESULT] += 1
        row[CONNECT + bisect_left(CONNECT_BOUNDS, took)] += 1
        row[CONNECT_SUM] += took
        row[CONNECTED_AT] = now

    def ended(self, lasted: int) -> None:
        """A connection has ended. lasted: nanoseconds."""
        row = self._row
        row[DURATION + bisect_left(DURATION_BOUNDS, lasted)] += 1
        row[DURATION_SUM] += lasted

    def came_to_nothing(self, cause: int) -> None:
        """A client could not be served, for a reason that does not lie with the endpoint."""
        self._row[cause - FIRST_RESULT] += 1

    def failed(self, cause: int, now: int) -> None:
        """The connect to the endpoint failed."""
        self._row[cause - FIRST_RESULT] += 1
        self._row[FAILED_AT] = now


class Measures:
    """The rows of one pool. Made by the master before the first worker is forked."""

    def __init__(self, board: Scoreboard, services: int) -> None:
        """services: how many the pool has. Raises OSError if memory is short."""
        rows = board.workers * services
        self._board = board
        self._services = services
        self._cells = memoryview(mmap.mmap(-1, rows * ROW * CELL)).cast("Q")
        self._written = mmap.mmap(-1, rows)

    def turn(self, number: int, place: int) -> Tally:
        """In a worker: from now on, count for the service at this place of its pool."""
        slot = self._board.slot(number)
        left, row = slot[ROUTE], self._row(number, place)
        self._written[self._index(number, place)] = 1
        if place != left:
            before = self._row(number, left)
            for left_cell, base_cell, total_cell in BYTES:
                total = slot[total_cell]
                before[left_cell] = total - before[base_cell]
                row[base_cell] = total - row[left_cell]
            slot[ROUTE] = place
        return Tally(row)

    def tally(self, number: int) -> Tally:
        """In the master, after a worker has died: the row in which it counted last."""
        return Tally(self._row(number, self._board.slot(number)[ROUTE]))

    def read(self) -> List[Measured]:
        """What was done for each service, by all workers together."""
        # Plain rows add up much faster than the objects made of them.
        sums = [[0] * ROW for _ in range(self._services)]
        for number in range(1, self._board.workers + 1):
            for place, row in self._of_worker(number):
                before = sums[place]
                sums[place] = list(map(add, before, row))
                for cell in (CONNECTED_AT, FAILED_AT):
                    sums[place][cell] = max(before[cell], row[cell])
        return list(map(_measured, sums))

    def _of_worker(self, number: int) -> List[Tuple[int, List[int]]]:
        """The rows that a worker has written, each with the bytes of its service in LEFT."""
        slot = self._board.slot(number)
        totals = {total: slot[total] for _, _, total in BYTES}
        route = slot[ROUTE]
        rows = [(place, self._row(number, place).tolist()) for place in self._places(number)]
        for place, row in rows:
            if place == route:
                for left, base, total in BYTES:
                    row[left] = max(row[left], totals[total] - row[base])
        return rows

    def _places(self, number: int) -> Iterator[int]:
        """The places of the services for which this worker has written a row."""
        start = self._index(number, 0)
        found = self._written.find(WRITTEN, start, start + self._services)
        while found >= 0:
            yield found - start
            found = self._written.find(WRITTEN, found + 1, start + self._services)

    def _index(self, number: int, place: int) -> int:
        return (number - 1) * self._services + place

    def _row(self, number: int, place: int) -> memoryview:
        start = self._index(number, place) * ROW
        return self._cells[start : start + ROW]


def _measured(row: Sequence[int]) -> Measured:
    return Measured(
        tuple(row[:RESULT_CELLS]),
        row[LEFT_UP],
        row[LEFT_DOWN],
        Histogram(tuple(row[CONNECT:CONNECT_SUM]), row[CONNECT_SUM]),
        Histogram(tuple(row[DURATION:DURATION_SUM]), row[DURATION_SUM]),
        row[CONNECTED_AT],
        row[FAILED_AT],
    )


def _sums(one: Sequence[int], other: Sequence[int]) -> Tuple[int, ...]:
    return tuple(map(sum, zip(one, other)))
