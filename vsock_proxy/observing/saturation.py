"""Noticing that all workers are busy. While some are idle, nobody has to look.

The worker that takes the last free place raises an alarm: one byte in a pipe. Only then the master
looks, ten times a second, until a worker is idle again. If that takes a second, it warns. It also
looks when a worker has ended, because that may have been the last idle one. All pools share the
pipe, so the master looks at each of them after an alarm.

While the master looks, workers raise no further alarm. Only the master writes on the scoreboard
that it looks, never a worker. A worker might die or be late, before or after its byte. Then the
scoreboard would say that the master looks, and it would not.

The master also adds up, on the scoreboard, the time from the alarm until a worker became idle. That
worker has noted when.
"""

from __future__ import annotations

import logging
import os
from typing import Optional

from vsock_proxy.observing.closing import NANOSECONDS
from vsock_proxy.observing.scoreboard import Scoreboard

# Seconds: between two looks, until the first warning, and between two warnings.
LOOK_INTERVAL = 0.1
TOLERATED = 1.0
WARNING_INTERVAL = 60.0

log = logging.getLogger(__name__)


class Alarm:
    """The workers' side."""

    def __init__(self, board: Scoreboard, writer: int) -> None:
        self._board = board
        self._writer = writer

    def raise_once(self) -> None:
        """All are busy: tell the master, unless it looks already."""
        if self._board.watched:
            return
        self.wake_master()

    def tell_serving(self) -> None:
        """A worker waits for connections: wake the master if it is the first."""
        if not self._board.serving:
            self._board.serving = True
            self.wake_master()

    def wake_master(self) -> None:
        """Let the master look at what has changed."""
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, BrokenPipeError):
            # The pipe is full of alarms, or the master is gone.
            pass


class Watch:
    """The master's side, for one pool."""

    def __init__(self, board: Scoreboard, service: Optional[str] = None) -> None:
        """service: the one that has these workers of its own; None: services share them."""
        self._board = board
        self._service = service
        self._since: Optional[float] = None
        # The time is added up until this moment.
        self._counted = 0.0
        self._next_look: Optional[float] = None
        self._last_warning = -WARNING_INTERVAL
        self._over = False

    @property
    def due(self) -> Optional[float]:
        """When to look next, by time.monotonic(); None while there is no alarm."""
        return self._next_look

    def suspect(self, now: float) -> None:
        """There is an alarm, or a worker has ended, so all may be busy: look for a while."""
        if self._since is None and not self._over:
            self._board.watched = True
            self._since = self._counted = now
            self._next_look = now + LOOK_INTERVAL

    def end(self, now: float) -> None:
        """No more clients come: stop looking, and get no more alarms."""
        if self._since is not None:
            self._count(now)
        self._over = self._board.watched = True
        self._since = self._next_look = None

    def look(self, now: float) -> None:
        """See whether all are still busy, and warn once that has lasted."""
        if self._since is None:
            return
        # Before the look: a worker that takes the last place after it has to raise an alarm.
        self._board.watched = False
        if not self._board.all_busy():
            self._count(min(now, self._board.idle_since() / NANOSECONDS))
            self._since = self._next_look = None
            return
        self._board.watched = True
        self._count(now)
        lasting = now - self._since >= TOLERATED
        self._next_look = now + (TOLERATED if lasting else LOOK_INTERVAL)
        if lasting and now - self._last_warning >= WARNING_INTERVAL:
            self._last_warning = now
            self._warn()

    def _count(self, until: float) -> None:
        """Add up that all were busy until then."""
        if until > self._counted:
            self._board.saturated += round((until - self._counted) * NANOSECONDS)
            self._counted = until

    def _warn(self) -> None:
        count = self._board.busy()
        workers = "the only worker" if count == 1 else f"all {count} workers"
        advice = "-w sets how many there are"
        if self._service is not None:
            workers += f" of {self._service}"
            advice = "workers: of the service sets how many there are"
        elif self._board.several:
            workers += " that services share"
            advice += ", and workers: gives a service its own"
        log.warning(
            "%(workers)s %(are)s busy, further clients wait; %(advice)s",
            {
                "event": "saturated",
                "service": self._service,
                "count": count,
                "workers": workers,
                "are": "is" if count == 1 else "are",
                "advice": advice,
            },
        )
