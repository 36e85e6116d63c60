"""What the master is to do later. Times are those of time.monotonic()."""

from __future__ import annotations

import time
from typing import Callable, List, Optional, Tuple

Action = Callable[[], None]


class Timers:
    """Actions, each with the time at which it is due."""

    def __init__(self) -> None:
        self._entries: List[Tuple[float, Action]] = []

    @property
    def due(self) -> Optional[float]:
        """When look() is to be called next; None: there is nothing to do."""
        return min((when for when, _ in self._entries), default=None)

    def at(self, when: float, action: Action) -> None:
        """Do something then, once."""
        self._entries.append((when, action))

    def after(self, seconds: float, action: Action) -> None:
        """Do something after this time in seconds, once."""
        self.at(time.monotonic() + seconds, action)

    def look(self, now: float) -> None:
        """Do what is due, in the order of time. What is added meanwhile waits for the next look."""
        due = sorted((entry for entry in self._entries if entry[0] <= now), key=lambda one: one[0])
        self._entries = [entry for entry in self._entries if entry[0] > now]
        for _, action in due:
            action()

    def clear(self) -> None:
        """Do none of it."""
        self._entries.clear()
