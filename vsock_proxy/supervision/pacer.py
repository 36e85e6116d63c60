"""A limit on forks a second, so that a process that dies at once cannot burn a core."""

from __future__ import annotations

from collections import deque
from typing import Deque

FORKS_PER_SECOND = 10


class Pacer:
    """Says when the next process may be started. Each call of next() stands for one fork."""

    def __init__(self, most: int = FORKS_PER_SECOND) -> None:
        """most: how many in a second."""
        self._most = most
        self._given: Deque[float] = deque(maxlen=most)

    def next(self, now: float) -> float:
        """The earliest time, from now on, at which one more fork keeps within the limit."""
        due = now
        if len(self._given) == self._most:
            due = max(now, self._given[0] + 1.0)
        self._given.append(due)
        return due
