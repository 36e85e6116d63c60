"""A bound on log lines that a guest can cause at will."""

from __future__ import annotations


class Limiter:
    """A token bucket: so many lines at once, then so many a second; it counts what it refuses."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = 0.0
        self._refused = 0

    def allow(self, now: float) -> bool:
        """Whether a line may be written; now is seconds of a monotonic clock."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            self._refused += 1
            return False
        self._tokens -= 1
        return True

    def take_refused(self) -> int:
        """How many lines were refused since the last call."""
        refused, self._refused = self._refused, 0
        return refused
