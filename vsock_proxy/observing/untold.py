"""Events without a line of their own in the log: all processes count them, the master reports them.

Such an event is a line that could not be written, a line over the limit, or an accept() that
failed. A process counts it in shared memory, in cells that only this process writes. Then it wakes
the master by one byte in a pipe. The master looks once a second until nothing new has come, and
writes one line for all processes. While it looks, nobody wakes it. While there are no such events,
nobody looks. Counts belong to the cells and not to the process, so they outlive it.

The cells of the workers of one pool are a block. The block is made before the first of them is
forked, and given back when the last has ended. What was counted in it stays in the totals.

If only a part of a line could be written, its rest is kept here too. Until the master has written
the rest, no other process writes, because its lines would end up in the middle of that line.
"""

from __future__ import annotations

import mmap
import os
from typing import List

from vsock_proxy.observing.stderr import MOST
from vsock_proxy.process.descriptors import non_blocking_pipe

# The kinds: lines refused by the limiter, lines that could not be written, failed accept()s.
LEFT_OUT, UNWRITTEN, NOT_ACCEPTED = range(3)
KINDS = 3
CELL = 8


class Block:
    """Cells for a number of processes, a row each. A row belongs to one process at a time."""

    def __init__(self, processes: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, processes * KINDS * CELL)).cast("Q")

    def row(self, place: int) -> memoryview:
        """The cells of one process, one for each kind. The first place is 0."""
        return self._cells[place * KINDS : (place + 1) * KINDS]

    def totals(self) -> List[int]:
        """How many there were of each kind."""
        return [sum(self._cells[kind::KINDS]) for kind in range(KINDS)]


class Untold:
    """The shared cells. Made once, before the first fork, with those of the master.

    reader: a non-blocking descriptor for the master, readable when there is something to look at.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, (KINDS + 2) * CELL + MOST)
        cells = memoryview(self._map)[: (KINDS + 2) * CELL].cast("Q")
        self._codes, self._state = cells[:-2], cells[-2:]
        self._text = memoryview(self._map)[-MOST:]
        self._blocks: List[Block] = []
        self._own = self.add(1).row(0)
        # The counts of blocks that were given back.
        self._before = [0] * KINDS
        self.reader, self._writer = non_blocking_pipe()

    def add(self, processes: int) -> Block:
        """In the master: make cells for this number of processes, before they are forked."""
        block = Block(processes)
        self._blocks.append(block)
        return block

    def drop(self, block: Block) -> None:
        """In the master: the processes that counted there have ended."""
        self._before = [sum(both) for both in zip(self._before, block.totals())]
        self._blocks.remove(block)

    def belong_to(self, row: memoryview) -> None:
        """In a child: count in these cells from now on."""
        self._own = row

    def count(self, kind: int, number: int = 1, code: int = 0) -> None:
        """Add this number to a kind."""
        self._own[kind] += number
        self.because(kind, code)
        self._wake()

    def because(self, kind: int, code: int) -> None:
        """Note the errno of the last event of a kind."""
        self._codes[kind] = code

    def _wake(self) -> None:
        if self.looked_at:
            return
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, BrokenPipeError):
            # The master is woken already, or is gone.
            pass

    def totals(self) -> List[int]:
        """How many there were of each kind, since the start."""
        counted = [self._before, *(block.totals() for block in self._blocks)]
        return [sum(of_kind) for of_kind in zip(*counted)]

    def code(self, kind: int) -> int:
        """The errno of the last event of a kind."""
        return self._codes[kind]

    @property
    def looked_at(self) -> bool:
        """Whether the master looks already. Only it writes this, so no other's death matters."""
        return bool(self._state[0])

    @looked_at.setter
    def looked_at(self, value: bool) -> None:
        self._state[0] = value

    @property
    def rest(self) -> bytes:
        """The rest of a torn line, which is still to be written."""
        return bytes(self._text[: self._state[1]])

    @property
    def is_torn(self) -> bool:
        """Whether there is such a rest."""
        return bool(self._state[1])

    def keep_rest(self, rest: bytes) -> None:
        """Let the master write it before any other line."""
        self._text[: len(rest)] = rest
        self._state[1] = len(rest)
        if rest:
            self._wake()
