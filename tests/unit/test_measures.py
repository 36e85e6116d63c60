"""What workers have done for each service: whose it is, and that no total ever goes back."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any, Callable, List, Set, Tuple

import pytest

from tests.support import processes
from tests.support.timing import at_full_length
from vsock_proxy.observing.measures import (
    CONNECT_BOUNDS,
    DURATION_BOUNDS,
    RESULTS,
    Measured,
    Measures,
)
from vsock_proxy.observing.scoreboard import (
    CLIENT_GONE,
    CONNECTIONS,
    DENIED,
    FAILED,
    REFUSED,
    SERVED,
    TOTAL_DOWN,
    TOTAL_UP,
    Scoreboard,
)

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

MILLISECOND = 1_000_000
SERVICES = 3


class Pool:
    """The memory of a pool, and what its workers do with it."""

    def __init__(self, workers: int = 2) -> None:
        self.board = Scoreboard(workers)
        self.measures = Measures(self.board, SERVICES)
        for number in range(1, workers + 1):
            self.board.claim(number, number)
            self.measures.turn(number, 0)

    def connection(self, number: int, place: int, up: int = 0, down: int = 0) -> None:
        """A worker serves one, as Worker does."""
        slot = self.board.slot(number)
        slot[CONNECTIONS] += 1
        self.measures.turn(number, place)
        slot[TOTAL_UP] += up
        slot[TOTAL_DOWN] += down

    def bytes(self) -> List[Tuple[int, int]]:
        return [(one.up, one.down) for one in self.measures.read()]


def test_where_nobody_has_done_anything_there_is_nothing() -> None:
    assert Pool().measures.read() == [Measured()] * SERVICES


def test_bytes_belong_to_the_service_that_the_worker_had_turned_to() -> None:
    pool = Pool()
    for place, up, down in [(0, 1, 2), (2, 10, 20), (0, 100, 200), (2, 1000, 2000)]:
        pool.connection(1, place, up, down)
    assert pool.bytes() == [(101, 202), (0, 0), (1010, 2020)]


def test_bytes_of_all_workers_are_added_up() -> None:
    pool = Pool()
    pool.connection(1, 1, 1, 2)
    pool.connection(2, 1, 10, 20)
    pool.connection(2, 0, 100, 200)
    assert pool.bytes() == [(100, 200), (11, 22), (0, 0)]


def test_bytes_of_a_connection_count_as_they_are_moved() -> None:
    pool = Pool()
    pool.connection(1, 2, 5, 0)
    pool.board.slot(1)[TOTAL_UP] += 7
    assert pool.bytes()[2] == (12, 0)


def test_a_successor_counts_on_where_its_predecessor_was() -> None:
    pool = Pool()
    pool.connection(1, 1, 5, 6)
    pool.board.vacate(1)
    pool.board.claim(1, 99)
    pool.measures.turn(1, 1)
    pool.connection(1, 1, 10, 20)
    pool.connection(1, 0, 100, 200)
    assert pool.bytes() == [(100, 200), (15, 26), (0, 0)]


class Died(Exception):
    """Where a worker ends in the middle of something."""


def die_at(line: int) -> Any:
    """A trace function that ends what runs in measures.py before its line of that number."""
    seen = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith("measures.py"):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise Died
        return trace

    return trace


def test_wherever_a_worker_dies_while_it_turns_no_total_changes() -> None:
    died_at = 0
    for line in range(1, 200):
        pool = Pool(1)
        pool.connection(1, 1, 5, 6)
        pool.connection(1, 2, 7, 8)
        expected = [(0, 0), (5, 6), (7, 8)]
        before = sys.gettrace()
        sys.settrace(die_at(line))
        try:
            pool.measures.turn(1, 1)
            break
        except Died:
            died_at = line
        finally:
            sys.settrace(before)
        assert pool.bytes() == expected
        # Whoever comes next goes on with what was left.
        pool.board.claim(1, 99)
        pool.connection(1, 0, 1, 1)
        assert pool.bytes() == [(1, 1), (5, 6), (7, 8)]
    assert died_at > 10


def read_with(pool: Pool, at: Callable[[int], None]) -> List[Tuple[int, int]]:
    """The bytes, if this is called with the number of each line of measures.py before it runs."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.endswith("measures.py"):
            return None
        if event == "line":
            at(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return pool.bytes()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("turns", [(1,), (2,), (0, 1), (0, 2, 1, 0, 1)], ids=str)
def test_wherever_a_worker_turns_while_it_is_read_totals_are_right(turns: Tuple[int, ...]) -> None:
    pool = Pool(1)
    lines: Set[int] = set()
    read_with(pool, lines.add)
    assert len(lines) > 10
    for line in lines:
        pool.connection(1, 0, 5, 50)
        pool.connection(1, 1, 7, 70)

        def turn(number: int, line: int = line) -> None:
            if number == line:
                for place in turns:
                    # The service that it serves at first gets no more: the least may not be less.
                    pool.connection(1, place, 0 if place == 1 else 100)

        before = pool.bytes()
        seen = read_with(pool, turn)
        after = pool.bytes()
        for (low, _), (found, _), (high, _) in zip(before, seen, after):
            assert low <= found <= high, (line, before, seen, after)


def test_no_total_goes_back_while_a_worker_turns_to_another_service() -> None:
    pool = Pool(1)
    pid = os.fork()
    if not pid:
        place = 0
        while True:
            place = (place + 1) % SERVICES
            pool.connection(1, place, 1, 1000)
    try:
        seen, reads = [(0, 0)] * SERVICES, 0
        until = time.monotonic() + at_full_length(3.0, 0.5)
        while time.monotonic() < until:
            now = pool.bytes()
            assert all(new >= old for new, old in zip(now, seen)), (seen, now)
            seen, reads = now, reads + 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert reads > 10
    # None is counted for another, and none twice.
    ups = [up for up, _ in pool.bytes()]
    assert max(ups) - min(ups) <= 1
    assert sum(ups) == pool.board.slot(1)[TOTAL_UP]


def test_results_are_counted_by_their_cause() -> None:
    pool = Pool()
    tally = pool.measures.turn(1, 1)
    tally.connected(MILLISECOND, 100)
    tally.failed(REFUSED, 200)
    tally.failed(FAILED, 300)
    tally.came_to_nothing(DENIED)
    tally.came_to_nothing(CLIENT_GONE)
    tally.came_to_nothing(CLIENT_GONE)
    counted = dict(zip(RESULTS, pool.measures.read()[1].results))
    assert {cause: count for cause, count in counted.items() if count} == {
        SERVED: 1,
        REFUSED: 1,
        FAILED: 1,
        DENIED: 1,
        CLIENT_GONE: 2,
    }


def test_the_last_connect_is_that_of_whichever_worker_had_it_last() -> None:
    pool = Pool()
    one, other = pool.measures.turn(1, 0), pool.measures.turn(2, 0)
    other.failed(REFUSED, 200)
    one.connected(MILLISECOND, 300)
    other.came_to_nothing(DENIED)
    one.failed(REFUSED, 100)
    (measured, *_) = pool.measures.read()
    assert (measured.connected, measured.failed) == (300, 200)


@pytest.mark.parametrize(
    ("took", "bucket"),
    [
        (0, 0),
        (1, 0),
        (MILLISECOND, 0),
        (MILLISECOND + 1, 1),
        (2_500_000, 1),
        (10_000 * MILLISECOND, len(CONNECT_BOUNDS) - 1),
        (10_000 * MILLISECOND + 1, len(CONNECT_BOUNDS)),
        (10**18, len(CONNECT_BOUNDS)),
    ],
)
def test_a_time_is_in_the_first_bucket_that_is_not_below_it(took: int, bucket: int) -> None:
    pool = Pool()
    pool.measures.turn(1, 0).connected(took, 1)
    connect = pool.measures.read()[0].connect
    assert connect.counts.index(1) == bucket
    assert (sum(connect.counts), connect.total) == (1, took)


def test_both_histograms_are_kept_apart_and_beside_the_rest() -> None:
    pool = Pool()
    for place in range(SERVICES):
        tally = pool.measures.turn(1, place)
        for bound in CONNECT_BOUNDS:
            tally.connected(bound, 1)
        for bound in DURATION_BOUNDS:
            tally.ended(bound)
        tally.ended(DURATION_BOUNDS[-1] + 1)
    for measured in pool.measures.read():
        assert measured.connect.counts == (1,) * len(CONNECT_BOUNDS) + (0,)
        assert measured.connect.total == sum(CONNECT_BOUNDS)
        assert measured.duration.counts == (1,) * (len(DURATION_BOUNDS) + 1)
        assert measured.duration.total == sum(DURATION_BOUNDS) + DURATION_BOUNDS[-1] + 1
        assert (measured.up, measured.down, measured.failed) == (0, 0, 0)


def test_what_was_never_written_to_takes_no_memory_when_it_is_read() -> None:
    board = Scoreboard(1000)
    measures = Measures(board, 1000)
    before = _shared_kib()
    measures.turn(1, 999)
    assert len(measures.read()) == 1000
    # A byte for each row is read, and nothing else; all rows together would be 336 MiB.
    assert _shared_kib() - before < 4096


def _shared_kib() -> int:
    return int(processes.field("/proc/self/status", "RssShmem"))
