"""What every worker does, in shared memory that anyone may read and nobody locks.

One anonymous shared map, made before the first fork. A worker owns one slot, a row of 64-bit
cells, and is the only one to write it; a cell is stored whole, so a reader may see two cells of
different moments but never half a number. Totals belong to the slot and not to the process: they
outlive a worker that is replaced. Nothing here is a system call.

Beside the slots, one byte a worker says whether it is busy: to see whether any is idle is then
one search for a zero byte, cheap even among a thousand.
"""

from __future__ import annotations

import enum
import mmap
import time
from dataclasses import dataclass
from typing import List, Tuple

CELL = 8


class State(enum.IntEnum):
    """What a worker does at the moment."""

    STARTING = 0
    IDLE = 1
    CONNECTING = 2
    RELAYING = 3
    HALF_CLOSED = 4
    DRAINING = 5

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Field(enum.IntEnum):
    """The cells of a slot: first those of the present, then the totals."""

    PID = 0
    STATE = 1
    SINCE = 2
    PEER_CID = 3
    PEER_PORT = 4
    # The endpoint's address as 128 bits, an IPv4 one mapped into IPv6 (RFC 4291, 2.5.5.2).
    ADDRESS_HIGH = 5
    ADDRESS_LOW = 6
    UP = 7
    DOWN = 8
    SERVED = 9
    REFUSED = 10
    TIMED_OUT = 11
    UNREACHABLE = 12
    UNRESOLVED = 13
    FAILED = 14
    DENIED = 15
    TOTAL_UP = 16
    TOTAL_DOWN = 17


FIELDS = len(Field)
FAILURES = (
    Field.REFUSED,
    Field.TIMED_OUT,
    Field.UNREACHABLE,
    Field.UNRESOLVED,
    Field.FAILED,
    Field.DENIED,
)
# What the cell PEER_CID holds where there is no CID, as on a Unix socket: no CID is that large.
NO_CID = 1 << 32


@dataclass(frozen=True)
class Row:
    """One slot at one moment; since is the time.monotonic_ns() of the last change of state."""

    number: int
    pid: int
    state: State
    since: int
    peer_cid: int
    peer_port: int
    address: Tuple[int, int]
    up: int
    down: int
    served: int
    failures: Tuple[int, ...]
    total_up: int
    total_down: int

    @property
    def failed(self) -> int:
        return sum(self.failures)


class Scoreboard:
    """The slots of all workers; workers are numbered from 1."""

    def __init__(self, workers: int) -> None:
        self._busy_start = workers * FIELDS * CELL
        self._busy_end = self._busy_start + workers
        self._map = mmap.mmap(-1, self._busy_end + 1)
        self._cells = memoryview(self._map)[: self._busy_start].cast("Q")
        self.workers = workers

    def slot(self, number: int) -> memoryview:
        """The cells of a worker, by Field, for it alone to write."""
        return self._cells[(number - 1) * FIELDS : number * FIELDS]

    def claim(self, number: int, pid: int) -> memoryview:
        """Take over a slot for a new worker, adding up what its predecessor left unfinished."""
        slot = self.slot(number)
        slot[Field.TOTAL_UP] += slot[Field.UP]
        slot[Field.TOTAL_DOWN] += slot[Field.DOWN]
        slot[Field.UP] = slot[Field.DOWN] = 0
        slot[Field.PID] = pid
        slot[Field.STATE] = State.STARTING
        slot[Field.SINCE] = time.monotonic_ns()
        self.set_busy(number, False)
        return slot

    def set_busy(self, number: int, busy: bool) -> None:
        """Say whether a worker has a connection."""
        self._map[self._busy_start + number - 1] = busy

    def all_busy(self) -> bool:
        """Whether no worker is idle."""
        return self._map.find(b"\0", self._busy_start, self._busy_end) < 0

    @property
    def watched(self) -> bool:
        """Whether the master already looks into all workers being busy."""
        return bool(self._map[self._busy_end])

    @watched.setter
    def watched(self, value: bool) -> None:
        self._map[self._busy_end] = value

    def busy(self) -> int:
        """How many workers have a connection."""
        return self._map[self._busy_start : self._busy_end].count(1)

    def rows(self) -> List[Row]:
        """All slots, as they are now."""
        return [self._row(number) for number in range(1, self.workers + 1)]

    def _row(self, number: int) -> Row:
        cells = self.slot(number).tolist()
        return Row(
            number=number,
            pid=cells[Field.PID],
            state=State(cells[Field.STATE]),
            since=cells[Field.SINCE],
            peer_cid=cells[Field.PEER_CID],
            peer_port=cells[Field.PEER_PORT],
            address=(cells[Field.ADDRESS_HIGH], cells[Field.ADDRESS_LOW]),
            up=cells[Field.UP],
            down=cells[Field.DOWN],
            served=cells[Field.SERVED],
            failures=tuple(cells[field] for field in FAILURES),
            total_up=cells[Field.TOTAL_UP],
            total_down=cells[Field.TOTAL_DOWN],
        )
