"""A bound on log lines that a guest can cause at will, one for all workers.

A ring in shared memory has the times of the last lines. When the oldest is a second ago, its place
is free for one more, so no second has more lines than the ring has places, wherever it begins.

There is no lock, which a worker could take with it when it dies, and no system call. So two workers
that take a place in the same instant may take the same one: that is one line too many. It is not
more, however long one of them was held up in between. Whoever was held up leaves the turn to those
that have overtaken it. If it sets it back all the same, in the instant between looking and storing,
the next ones look a few places ahead; and a second later all is right again.
"""

from __future__ import annotations

import mmap

LINES_PER_SECOND = 200
SECOND = 1_000_000_000
CELL = 8
# How many places are looked at, the first of which is mostly the one; where each line is one too
# many, each look is in vain.
LOOKS = 4


class Limiter:
    """Made once, before the first fork."""

    def __init__(self, lines: int = LINES_PER_SECOND) -> None:
        """lines: how many there may be in any second."""
        self._lines = lines
        self._looks = range(min(lines, LOOKS))
        # The last cell is the number of the place whose turn it is.
        self._cells = memoryview(mmap.mmap(-1, (lines + 1) * CELL)).cast("Q")

    def allow(self, now: int) -> bool:
        """Whether a line may be written; now is a time.monotonic_ns()."""
        cells, lines = self._cells, self._lines
        turn = place = cells[lines]
        for _ in self._looks:
            taken = cells[place]
            following = place + 1 if place + 1 < lines else 0
            if not taken or now - taken >= SECOND:
                cells[place] = now
                if cells[lines] == turn:
                    cells[lines] = following
                return True
            # Another worker is just taking it, and the next one's turn has come.
            place = following
        return False
