"""What every worker does, in shared memory that all processes may read without a lock.

It is one anonymous shared map, made before the first fork. Each worker owns one slot, a row of
64-bit cells, and only this worker writes it. A cell is stored whole. So a reader may see two cells
of different moments, but never half a number. Totals belong to the slot and not to the process, so
they outlive a worker that is replaced. Nothing here is a system call.

Beside the slots, one byte for each worker says whether it is idle, busy or absent. So one search
for a byte finds an idle worker, and stays cheap among a thousand.
"""

from __future__ import annotations

import enum
import mmap
import time
from dataclasses import dataclass
from typing import List, Tuple

CELL = 8


class State(enum.IntEnum):
    """What a worker does at the moment, whether or not it ends afterwards."""

    ABSENT = 0
    STARTING = 1
    IDLE = 2
    CONNECTING = 3
    RELAYING = 4
    HALF_CLOSED = 5

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


# The cells of a slot. They are plain integers because every connection uses them: to look up a
# member of an enum costs more than to write the cell. First the cells of the present:
PID, STATE, SINCE = range(3)
# the client, as peers.py has it; only a TCP client uses the last two;
PEER_KIND, PEER_PORT, PEER_HIGH, PEER_LOW = range(3, 7)
# the endpoint's address as 128 bits, an IPv4 one mapped into IPv6 (RFC 4291, 2.5.5.2);
ADDRESS_HIGH, ADDRESS_LOW = range(7, 9)
# the totals of bytes when the connection began; what it has moved is the difference, so nothing has
# to be added up at its end, when a worker may die;
UP_BEFORE, DOWN_BEFORE = range(9, 11)
# then the totals: connections served, failed by cause, and left by their clients; and bytes, side
# by side for the relay to count in.
SERVED, REFUSED, TIMED_OUT, UNREACHABLE, UNRESOLVED, FAILED, DENIED, CLIENT_GONE = range(11, 19)
TOTAL_UP, TOTAL_DOWN = range(19, 21)
# Whether the worker ends with its connection, and which of its pool's services it serves now or
# served last.
DRAINS, ROUTE = range(21, 23)
# The serial of its process among all workers since the start, and how many connections that process
# has accepted. Together they name a connection (closing.py).
SERIAL, CONNECTIONS = range(23, 25)
FIELDS = 25
# The values of a worker's byte,
IS_IDLE, IS_BUSY, IS_ABSENT = range(3)
IDLE_BYTE, BUSY_BYTE = bytes((IS_IDLE,)), bytes((IS_BUSY,))
# and the places of the pool's own bytes, which come after those.
WATCHED, SERVING, RETIRED, SEVERAL = range(4)
FLAGS = 4

FAILURES = {
    REFUSED: "refused",
    TIMED_OUT: "timed out",
    UNREACHABLE: "unreachable",
    UNRESOLVED: "unresolved",
    DENIED: "denied",
    FAILED: "otherwise",
}


@dataclass(frozen=True)
class Row:
    """One slot at one moment.

    since: the time.monotonic_ns() when the worker began to wait, to serve its connection, or to be
    absent; 0 if it never ran. failures: in the order of FAILURES. route: the place of the service
    in its pool. serial: the number of its process among all workers of the run. connections: how
    many this process has accepted.
    """

    number: int
    pid: int
    state: State
    drains: bool
    since: int
    route: int
    serial: int
    connections: int
    peer: Tuple[int, ...]
    address: Tuple[int, int]
    up: int
    down: int
    served: int
    failures: Tuple[int, ...]
    gone: int
    total_up: int
    total_down: int

    @property
    def failed(self) -> int:
        return sum(self.failures)


class Scoreboard:
    """The slots of all workers; workers are numbered from 1."""

    def __init__(self, workers: int) -> None:
        self._slots_end = workers * FIELDS
        # After them comes one cell of the master.
        self._busy_start = (self._slots_end + 1) * CELL
        self._busy_end = self._busy_start + workers
        self._map = mmap.mmap(-1, self._busy_end + FLAGS)
        self._cells = memoryview(self._map)[: self._busy_start].cast("Q")
        self.workers = workers
        for number in range(1, workers + 1):
            self._mark(number, IS_ABSENT)

    def slot(self, number: int) -> memoryview:
        """The cells of a worker, for it alone to write."""
        return self._cells[(number - 1) * FIELDS : number * FIELDS]

    def expect(self, number: int, serial: int) -> None:
        """For the master: a worker with this serial is about to be forked."""
        self.slot(number)[SERIAL] = serial

    def claim(self, number: int, pid: int) -> memoryview:
        """Take over a slot for a new worker. It goes on with the service that was served last."""
        slot = self.slot(number)
        slot[UP_BEFORE], slot[DOWN_BEFORE] = slot[TOTAL_UP], slot[TOTAL_DOWN]
        slot[PID] = pid
        slot[STATE] = State.STARTING
        slot[DRAINS] = False
        slot[CONNECTIONS] = 0
        slot[SINCE] = time.monotonic_ns()
        self._mark(number, IS_IDLE)
        return slot

    def vacate(self, number: int) -> None:
        """For the master: a worker has ended, in whatever way."""
        slot = self.slot(number)
        slot[STATE] = State.ABSENT
        slot[PID] = 0
        slot[SINCE] = time.monotonic_ns()
        self._mark(number, IS_ABSENT)

    def set_busy(self, number: int, busy: bool) -> None:
        """Say whether a worker has a connection."""
        self._map[self._busy_start + number - 1] = IS_BUSY if busy else IS_IDLE

    def all_busy(self) -> bool:
        """Whether there are workers and none of them is idle."""
        find, start, end = self._map.find, self._busy_start, self._busy_end
        return find(IDLE_BYTE, start, end) < 0 <= find(BUSY_BYTE, start, end)

    @property
    def watched(self) -> bool:
        """Whether the master already looks because all workers may be busy."""
        return bool(self._map[self._busy_end + WATCHED])

    @watched.setter
    def watched(self, value: bool) -> None:
        self._map[self._busy_end + WATCHED] = value

    @property
    def serving(self) -> bool:
        """Whether any worker has served or waited for a connection."""
        return bool(self._map[self._busy_end + SERVING])

    @serving.setter
    def serving(self, value: bool) -> None:
        self._map[self._busy_end + SERVING] = value

    @property
    def retired(self) -> bool:
        """Whether another pool has replaced this one; set before its workers learn of that."""
        return bool(self._map[self._busy_end + RETIRED])

    @retired.setter
    def retired(self, value: bool) -> None:
        self._map[self._busy_end + RETIRED] = value

    @property
    def several(self) -> bool:
        """Whether there are several services, in this pool or others. Then lines name them."""
        return bool(self._map[self._busy_end + SEVERAL])

    @several.setter
    def several(self, value: bool) -> None:
        self._map[self._busy_end + SEVERAL] = value

    @property
    def saturated(self) -> int:
        """The nanoseconds in which all workers were busy, in total; only the master sets it."""
        return self._cells[self._slots_end]

    @saturated.setter
    def saturated(self, value: int) -> None:
        self._cells[self._slots_end] = value

    def idle_since(self) -> int:
        """The time.monotonic_ns() when the first idle worker became idle; 0 if none is."""
        cells = self._cells
        states = cells[STATE : self._slots_end : FIELDS].tolist()
        since = cells[SINCE : self._slots_end : FIELDS].tolist()
        return min((when for state, when in zip(states, since) if state == State.IDLE), default=0)

    def busy(self) -> int:
        """How many workers have a connection."""
        return self._map[self._busy_start : self._busy_end].count(IS_BUSY)

    def rows(self) -> List[Row]:
        """All slots, as they are now."""
        return [self.row(number) for number in range(1, self.workers + 1)]

    def _mark(self, number: int, what: int) -> None:
        self._map[self._busy_start + number - 1] = what

    def row(self, number: int) -> Row:
        """One slot, as it is now."""
        cells = self.slot(number).tolist()
        return Row(
            number=number,
            pid=cells[PID],
            state=State(cells[STATE]),
            drains=bool(cells[DRAINS]),
            since=cells[SINCE],
            route=cells[ROUTE],
            serial=cells[SERIAL],
            connections=cells[CONNECTIONS],
            peer=tuple(cells[PEER_KIND : PEER_LOW + 1]),
            address=(cells[ADDRESS_HIGH], cells[ADDRESS_LOW]),
            up=cells[TOTAL_UP] - cells[UP_BEFORE],
            down=cells[TOTAL_DOWN] - cells[DOWN_BEFORE],
            served=cells[SERVED],
            failures=tuple(cells[field] for field in FAILURES),
            gone=cells[CLIENT_GONE],
            total_up=cells[TOTAL_UP],
            total_down=cells[TOTAL_DOWN],
        )
