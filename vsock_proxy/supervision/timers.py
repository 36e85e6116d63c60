"""What the master has to do later. Times are those of time.monotonic()."""

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
        """When look() has to be called next; None: there is nothing to do."""
        return min((when for when, _ in self._entries), default=None)

    def at(self, when: float, action: Action) -> None:
        """Do something at this time, once."""
        self._entries.append((when, action))

    def after(self, seconds: float, action: Action) -> None:
        """Do something after these seconds, once."""
        self.at(time.monotonic() + seconds, action)

    def look(self, now: float) -> None:
        """Do what is due, in the order of time. What is added meanwhile waits for the next look."""
        due = sorted((entry for entry in self._entries if entry[0] <= now), key=lambda one: one[0])
        self._entries = [entry for entry in self._entries if entry[0] > now]
        for _, action in due:
            action()

    def clear(self) -> None:
        """Drop all actions."""
        self._entries.clear()
