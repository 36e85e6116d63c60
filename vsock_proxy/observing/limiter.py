"""A limit on log lines that a guest can cause at will, one for all workers.

A ring in shared memory holds the times of the last lines. When the oldest time is a second ago, its
place is free for one more line. So no second, wherever it begins, has more lines than the ring has
places.

There is no system call and no lock, because a worker could die with a lock. So two workers may take
the same place in the same instant. That is one line too many for these two, however long one of
them was delayed in between. A delayed worker does not touch the turn if others have moved it. In
the instant between its look and its store it may still set the turn back. Then the next workers
look a few places ahead, and a second later all is right again.
"""

from __future__ import annotations

import mmap

LINES_PER_SECOND = 200
SECOND = 1_000_000_000
CELL = 8
# How many places a worker looks at. The first is mostly free. While every line is one too many,
# each look is in vain.
LOOKS = 4


class Limiter:
    """Made once, before the first fork."""

    def __init__(self, lines: int = LINES_PER_SECOND) -> None:
        """lines: how many are allowed in any second."""
        self._lines = lines
        self._looks = range(min(lines, LOOKS))
        # The last cell holds the number of the place that is next.
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
            # Another worker has taken it just now: look at the next one.
            place = following
        return False
