"""Which of an endpoint's addresses to try when (RFC 8305, 5); without sockets and clocks.

They are tried in their order: the next one 250 ms after the one before, or at once when that one
has failed. The intervals are shorter if there would be no time to try them all. Attempts go on in
parallel until one succeeds or time is over.
"""

from __future__ import annotations

import errno
import os
from typing import Dict, Optional, Sequence

from vsock_proxy.endpoint.addresses import Address
from vsock_proxy.observing import scoreboard

# RFC 8305, 5 and 8: the Connection Attempt Delay, and the least that it may be.
ATTEMPT_DELAY = 0.25
SHORTEST_DELAY = 0.01

CAUSES = {
    errno.ECONNREFUSED: scoreboard.REFUSED,
    errno.ETIMEDOUT: scoreboard.TIMED_OUT,
    errno.ENETUNREACH: scoreboard.UNREACHABLE,
    errno.EHOSTUNREACH: scoreboard.UNREACHABLE,
}


class ConnectFailed(Exception):
    """No address answered; the text says why for each.

    cause: the scoreboard's cell for it.
    code: the errno of the address that failed last; 0 if there is none.
    """

    def __init__(self, text: str, cause: int, code: int = 0) -> None:
        super().__init__(text)
        self.cause = cause
        self.code = code


class Race:
    """One race of addresses. The caller reads the clock.

    Addresses are named by their places in the list, because a list may contain one twice.
    """

    def __init__(self, addresses: Sequence[Address], deadline: float) -> None:
        """deadline: when all attempts are given up."""
        self.addresses = addresses
        self._deadline = deadline
        self._tried = 0
        self._next_at = 0.0
        # By place: the errno of each attempt that has failed.
        self._failed: Dict[int, int] = {}

    def next(self, now: float) -> Optional[int]:
        """The place of the address to try now; None if none is due."""
        place = self._tried
        if place == len(self.addresses) or now < self._next_at:
            return None
        self._tried += 1
        self._next_at = now + self._delay(now)
        return place

    def fail(self, place: int, code: int) -> None:
        """An attempt has failed with this errno."""
        self._failed[place] = code
        if place == self._tried - 1:
            self._next_at = 0.0

    @property
    def until(self) -> float:
        """Until when to wait for an answer before the next call of next(); it may be past."""
        if self._tried < len(self.addresses):
            return min(self._next_at, self._deadline)
        return self._deadline

    @property
    def all_failed(self) -> bool:
        """Whether all attempts have been made and have failed."""
        return len(self._failed) == len(self.addresses)

    def is_over(self, now: float) -> bool:
        """Whether time is over, so that no further attempt is made."""
        return now >= self._deadline

    def failure(self) -> ConnectFailed:
        """After a lost race: what became of each address."""
        reasons = [f"{address}: {self._reason(i)}" for i, address in enumerate(self.addresses)]
        text = "; ".join(reasons)
        if not self.all_failed:
            return ConnectFailed(text, scoreboard.TIMED_OUT)
        # In the order in which they failed.
        *_, last = self._failed.values()
        return ConnectFailed(text, CAUSES.get(last, scoreboard.FAILED), last)

    def _delay(self, now: float) -> float:
        """So that each waiting address gets its turn, and the last one time to answer."""
        waiting = len(self.addresses) - self._tried
        fair = (self._deadline - now) / (waiting + 1)
        return max(SHORTEST_DELAY, min(ATTEMPT_DELAY, fair))

    def _reason(self, place: int) -> str:
        if place in self._failed:
            return os.strerror(self._failed[place])
        return "no answer in time" if place < self._tried else "not tried, time was over"
