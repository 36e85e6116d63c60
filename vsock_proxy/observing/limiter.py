"""A bound on log lines that a guest can cause at will, one for all workers.

A ring in shared memory has the times of the last lines. When the oldest is a second ago, its place
is free for one more, so no second has more lines than the ring has places, wherever it begins.

There is no lock, which a worker could take with it when it dies, and no system call. So two workers
that take a place in the same instant may take the same one: that is one line too many. It is not
more, however long one of them was held up in between, and a second later all is right again.
"""

from __future__ import annotations

import mmap

LINES_PER_SECOND = 200
SECOND = 1_000_000_000
CELL = 8


class Limiter:
    """Made once, before the first fork."""

    def __init__(self, lines: int = LINES_PER_SECOND) -> None:
        """lines: how many there may be in any second."""
        self._lines = lines
        # The last cell is the number of the place whose turn it is.
        self._cells = memoryview(mmap.mmap(-1, (lines + 1) * CELL)).cast("Q")

    def allow(self, now: int) -> bool:
        """Whether a line may be written; now is a time.monotonic_ns()."""
        cells, lines = self._cells, self._lines
        place = cells[lines]
        for _ in range(lines):
            taken = cells[place]
            following = place + 1 if place + 1 < lines else 0
            if not taken or now - taken >= SECOND:
                cells[place] = now
                cells[lines] = following
                return True
            if cells[following] >= taken:
                return False
            # Not the oldest: another worker is just taking it, and the next one's turn has come.
            place = following
        return False
