"""Noticing that all workers are busy, without anyone looking while they are not.

The worker that takes the last free place raises an alarm, one byte in a pipe. Only then does the
master look, ten times a second, until a worker is idle again; when a second has passed first, it
warns. It also looks when a worker has ended, since that may have been the last idle one. All pools
share the pipe, so at an alarm the master looks at each of them.

While it looks, workers raise no further alarm. It is the master that says so on the scoreboard, and
never a worker: that might die, or be late, before or after its byte, and leave word that somebody
looks when nobody does.

What it sees it also adds up on the scoreboard, from the alarm to the moment when a worker became
idle, which the worker has noted.
"""

from __future__ import annotations

import logging
import os
from typing import Optional

from vsock_proxy.observing.closing import NANOSECONDS
from vsock_proxy.observing.scoreboard import Scoreboard

# Seconds: how often to look, for how long all must be busy, and between two warnings.
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
        """All are busy: tell the master, unless it is looking already."""
        if self._board.watched:
            return
        self.wake_master()

    def tell_serving(self) -> None:
        """A worker waits for connections: wake the master if it is the first."""
        if not self._board.serving:
            self._board.serving = True
            self.wake_master()

    def wake_master(self) -> None:
        """Let it look at what has changed."""
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, BrokenPipeError):
            # Told often enough, or there is no master any more.
            pass


class Watch:
    """The master's side, for one pool."""

    def __init__(self, board: Scoreboard, service: Optional[str] = None) -> None:
        """service: the name of the one that has these workers of its own; None: they are shared."""
        self._board = board
        self._service = service
        self._since: Optional[float] = None
        # Until when the time has been added up.
        self._counted = 0.0
        self._next_look: Optional[float] = None
        self._last_warning = -WARNING_INTERVAL
        self._over = False

    @property
    def due(self) -> Optional[float]:
        """When to look next, of time.monotonic(); None while nobody raised the alarm."""
        return self._next_look

    def suspect(self, now: float) -> None:
        """All may be busy, as an alarm was raised or a worker has ended: look for a while."""
        if self._since is None and not self._over:
            self._board.watched = True
            self._since = self._counted = now
            self._next_look = now + LOOK_INTERVAL

    def end(self, now: float) -> None:
        """No clients come any more: look no more, and hear of no alarm."""
        if self._since is not None:
            self._count(now)
        self._over = self._board.watched = True
        self._since = self._next_look = None

    def look(self, now: float) -> None:
        """See whether all are still busy; warn once that has lasted."""
        if self._since is None:
            return
        # In this order: a worker that takes the last place after the look must find nobody looking.
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
        """All were busy until then, as far as that is not added up yet."""
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
