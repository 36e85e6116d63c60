"""The silence of one connection: what is due when, if nothing happens. The clock is handed in.

A limit ends a connection in which nothing moves. Bytes also move when a side takes what the kernel
holds for it. poll() reports that late or never, so the relay looks at what the kernel holds:

    after an event      FIRST_LOOK later; the limit counts from that look, so it is never early
    as long as it       every INTERVAL, or every LOOKS-th part of a long limit;
    holds something     if it holds less than at the look before, the limit starts again
    once it holds       no more: nothing can move without an event
    nothing

So a limit is exact to that interval. While bytes flow freely, no clock is read: the first wait
after an event always has the same length. What is due is worked out only if that wait passes
without an event.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

# Seconds. Long enough that there is no look between two exchanges with an endpoint nearby.
FIRST_LOOK = 0.01
INTERVAL = 0.05
LOOKS = 100
# A connection counts as lasting once nothing has happened for this time.
MOMENT = 0.05
# On vsock, no event reports that a peer goes away for good after a half-close (vsock_poll() in
# net/vmw_vsock/af_vsock.c), so the relay asks at this interval.
ASK_INTERVAL = 1.0

NEVER = math.inf
Held = Tuple[int, int]


class Silence:
    """What is due in one connection after the other.

    limit: seconds of silence that end it; 0: there is no limit.
    pause: milliseconds to wait for an event; None: as long as it takes.
    quiet: whether the last wait passed without an event.
    lasting: whether the connection counts as lasting; last() sets it.
    """

    __slots__ = (
        "_after_event",
        "_ask_at",
        "_asks",
        "_half_close",
        "_held",
        "_idle",
        "_look_at",
        "_moment_at",
        "_over_at",
        "lasting",
        "limit",
        "pause",
        "quiet",
    )

    def __init__(self, half_close: float) -> None:
        """half_close: the limit once one direction has ended, unless the other is shorter."""
        self._half_close = half_close

    def begin(self, idle: float) -> None:
        """Start over with another connection. idle: the limit while both directions go on."""
        self.limit = self._idle = idle
        self.lasting = self.quiet = self._asks = False
        self._held: Optional[Held] = None
        self._set_pause()

    def last(self) -> None:
        """From now on the connection counts as lasting."""
        self.lasting = True
        self._moment_at = NEVER
        self._set_pause()

    def half_close(self, asks: bool) -> None:
        """One direction has ended. asks: whether the relay must ask if a side is still there.

        Call it after an event, and again when asks changes.
        """
        self.limit = min(self._half_close, self._idle or self._half_close)
        self._asks = asks
        self._set_pause()

    def fall_quiet(self, now: float) -> None:
        """The first wait after an event passed without another."""
        assert self.pause is not None
        event = now - self.pause / 1000
        self.quiet = True
        self._held = None
        self._moment_at = NEVER if self.lasting else event + MOMENT
        self._look_at = event + FIRST_LOOK if self.limit else NEVER
        self._ask_at = event + ASK_INTERVAL if self._asks else NEVER
        self._over_at = NEVER

    def wake(self) -> None:
        """An event came after silence."""
        self.quiet = False
        self.pause = self._after_event

    def lasts(self, now: float) -> bool:
        """Whether the connection counts as lasting from now on."""
        return now >= self._moment_at

    def asks(self, now: float) -> bool:
        """Whether it is time to ask if a side is still there."""
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_INTERVAL
        return True

    def looks(self, now: float) -> bool:
        """Whether it is time to look at what the kernel holds."""
        return now >= self._look_at

    def look(self, now: float, held: Held) -> bool:
        """Whether the connection has been silent for too long.

        held: what the kernel holds for the client and for the endpoint.
        """
        before = self._held
        if before is None or held[0] < before[0] or held[1] < before[1]:
            self._over_at = now + self.limit
        self._held = held
        interval = max(INTERVAL, self.limit / LOOKS)
        self._look_at = min(now + interval, self._over_at) if any(held) else self._over_at
        return now >= self._over_at

    def set_next(self, now: float) -> None:
        """Wait for what is due next."""
        due = min(self._moment_at, self._look_at, self._ask_at)
        self.pause = None if due == NEVER else max(0, math.ceil((due - now) * 1000))

    def _set_pause(self) -> None:
        firsts = (
            NEVER if self.lasting else MOMENT,
            FIRST_LOOK if self.limit else NEVER,
            ASK_INTERVAL if self._asks else NEVER,
        )
        first = min(firsts)
        self._after_event = None if first == NEVER else math.ceil(first * 1000)
        self.pause = self._after_event
