"""What the master says of the run, for the process that serves metrics: a few cells of its own.

It says how far the run has come, how often it has started another process to replace one that
ended, and which process for metrics is the one in force. And it counts the rounds of its loop. It
makes none while nothing happens; whoever wants to know whether it is there wakes it and sees
whether the count moves.
"""

from __future__ import annotations

import enum
import mmap
import time
from typing import Dict

CELL = 8
# Processes that have successors, by what they are called.
RESPAWNED = ("worker", "resolver", "log", "metrics")


class Stage(enum.IntEnum):
    """How far the run has come."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2


STAGE, ROUNDS, EXPORTER, RESPAWNS = range(4)


class Vitals:
    """Made once, by the master, which alone writes it.

    started: when, by time.time().
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
        """The master has done all that there was to do."""
        self._cells[ROUNDS] += 1

    @property
    def exporter(self) -> int:
        """The serial of the process for metrics that is in force; an earlier one is to go."""
        return self._cells[EXPORTER]

    @exporter.setter
    def exporter(self, value: int) -> None:
        self._cells[EXPORTER] = value

    @property
    def respawns(self) -> Dict[str, int]:
        """How often there was a successor, by what the processes are called."""
        return dict(zip(RESPAWNED, self._cells[RESPAWNS:]))

    def count_respawn(self, process: str) -> None:
        """There is to be another of those that are called so."""
        self._cells[RESPAWNS + RESPAWNED.index(process)] += 1
