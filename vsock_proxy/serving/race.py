"""Which of an endpoint's addresses to try when (RFC 8305, 5), apart from sockets and clocks.

They are tried in their order: the next one 250 ms after the last, or at once when the last one has
failed. Where time would be over before the last one's turn, they follow each other more quickly.
Attempts go on beside each other, until one succeeds or time is over.
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
    """No address answered; the text says for each why.

    cause: the scoreboard's cell for it.
    code: the errno, of several addresses that of the last to fail; 0 if there is none.
    """

    def __init__(self, text: str, cause: int, code: int = 0) -> None:
        super().__init__(text)
        self.cause = cause
        self.code = code


class Race:
    """One race of addresses. Times are of one clock, which the caller reads.

    Addresses are named by their places in the list: a list may have one twice.
    """

    def __init__(self, addresses: Sequence[Address], deadline: float) -> None:
        """deadline: when all attempts are given up."""
        self.addresses = addresses
        self._deadline = deadline
        self._tried = 0
        self._next_at = 0.0
        # By place, the errno of each attempt that has failed.
        self._failed: Dict[int, int] = {}

    def next(self, now: float) -> Optional[int]:
        """The place of the address to try now, None if none is due."""
        place = self._tried
        if place == len(self.addresses) or now < self._next_at:
            return None
        self._tried += 1
        self._next_at = now + self._delay(now)
        return place

    def fail(self, place: int, code: int) -> None:
        """An attempt has failed, with that errno."""
        self._failed[place] = code
        if place == self._tried - 1:
            self._next_at = 0.0

    @property
    def until(self) -> float:
        """How long to wait for an answer before asking what is next; it may be past."""
        if self._tried < len(self.addresses):
            return min(self._next_at, self._deadline)
        return self._deadline

    @property
    def all_failed(self) -> bool:
        """Whether no attempt goes on, and none is to come."""
        return len(self._failed) == len(self.addresses)

    def is_over(self, now: float) -> bool:
        """Whether time is over, and no further attempt is to be made."""
        return now >= self._deadline

    def failure(self) -> ConnectFailed:
        """What has become of each address, for when the race is lost."""
        reasons = [f"{address}: {self._reason(i)}" for i, address in enumerate(self.addresses)]
        text = "; ".join(reasons)
        if not self.all_failed:
            return ConnectFailed(text, scoreboard.TIMED_OUT)
        # In the order in which they failed.
        *_, last = self._failed.values()
        return ConnectFailed(text, CAUSES.get(last, scoreboard.FAILED), last)

    def _delay(self, now: float) -> float:
        """So that each that waits has its turn, and the last one some time to answer."""
        waiting = len(self.addresses) - self._tried
        fair = (self._deadline - now) / (waiting + 1)
        return max(SHORTEST_DELAY, min(ATTEMPT_DELAY, fair))

    def _reason(self, place: int) -> str:
        if place in self._failed:
            return os.strerror(self._failed[place])
        return "no answer in time" if place < self._tried else "not tried, time was over"
