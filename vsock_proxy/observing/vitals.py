"""What the master tells the exporter of the run: a few cells that only the master writes.

They hold how far the run has come, how often the master has replaced a process that ended, and
which exporter is in force. They also count the rounds of the master's loop. It makes none while
nothing happens. To see whether the master is alive, wake it and see whether the count moves.
"""

from __future__ import annotations

import enum
import mmap
import time
from typing import Dict

CELL = 8
# The names of processes that the master replaces when they end.
RESPAWNED = ("worker", "resolver", "log", "metrics")


class Stage(enum.IntEnum):
    """How far the run has come."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2


STAGE, ROUNDS, EXPORTER, RESPAWNS = range(4)


class Vitals:
    """Made once, by the master. Only the master writes it.

    started: when the master started, by time.time().
    """

    def __init__(self) -> None:
        self.started = time.time()
        self._cells = memoryview(mmap.mmap(-1, (RESPAWNS + len(RESPAWNED)) * CELL)).cast("Q")

    @property
    def stage(self) -> Stage:
        """How far the run has come."""
        return Stage(self._cells[STAGE])

    @stage.setter
    def stage(self, value: Stage) -> None:
        self._cells[STAGE] = value

    @property
    def rounds(self) -> int:
        """How often the master has gone round its loop."""
        return self._cells[ROUNDS]

    def count_round(self) -> None:
        """The master has done everything that was due."""
        self._cells[ROUNDS] += 1

    @property
    def exporter(self) -> int:
        """The serial of the exporter in force. Exporters with a lower serial have to end."""
        return self._cells[EXPORTER]

    @exporter.setter
    def exporter(self, value: int) -> None:
        self._cells[EXPORTER] = value

    @property
    def respawns(self) -> Dict[str, int]:
        """How often a process was replaced, by the name of the process."""
        return dict(zip(RESPAWNED, self._cells[RESPAWNS:]))

    def count_respawn(self, process: str) -> None:
        """The master starts another process of this name."""
        self._cells[RESPAWNS + RESPAWNED.index(process)] += 1
