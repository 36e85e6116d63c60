"""Waiting for the endpoint, with an eye on the client and the master.

Most endpoints answer in a moment, and then nothing of this is done. Beyond that, a client that goes
away ends the waiting, and the end of the master is acted on; both are part of the poll() by which
the endpoint is waited for.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass
from typing import Callable, List, Tuple

from vsock_proxy.serving.presence import GONE, SPOKEN, Presence, presence_of

# Seconds that connecting may take before anything else is looked after.
MOMENT = 0.05
# vsock tells by no event that a client which half-closed goes away for good, so it is asked again
# at this interval, in seconds.
GONE_CHECK_INTERVAL = 1.0

Events = List[Tuple[int, int]]


class ClientGone(Exception):
    """The client went away and left nothing that could be delivered."""


@dataclass(frozen=True)
class Meanwhile:
    """What a worker sees to while it waits.

    lifeline: readable once the master is gone.
    on_lasting: called once when it has waited for more than a moment.
    on_orphaned: called once, after that, when the master is gone.
    """

    lifeline: int
    on_lasting: Callable[[], None]
    on_orphaned: Callable[[], None]


class Waiting:
    """The waiting for one connection.

    poll: register here what is waited for.
    """

    def __init__(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile, began: float
    ) -> None:
        """presence: what was known of the client when it began, at that time.monotonic()."""
        self.poll = select.poll()
        self._client = client
        # One that has left bytes is served, be it gone or not.
        self._served_anyway = presence is SPOKEN
        self._meanwhile = meanwhile
        self._moment = began + MOMENT
        self._lasts = False
        self._asks = False

    def wait(self, until: float) -> Events:
        """The events of what is waited for; none if it takes longer, or other things happened.

        until: when to return at the latest. Raises ClientGone.
        """
        now = time.monotonic()
        if self._lasts:
            until = min(until, now + GONE_CHECK_INTERVAL) if self._asks else until
        elif now < self._moment:
            until = min(until, self._moment)
        else:
            self._last()
        events = self.poll.poll(max(0.0, until - now) * 1000)
        if not self._lasts:
            return events
        if not events and self._asks:
            self._look_at_client()
        return [event for event in events if not self._is_aside(event[0])]

    def _last(self) -> None:
        self._lasts = True
        if not self._served_anyway:
            self.poll.register(self._client, select.POLLRDHUP)
        self.poll.register(self._meanwhile.lifeline, select.POLLIN)
        self._meanwhile.on_lasting()

    def _is_aside(self, fd: int) -> bool:
        """See to an event of the client or of the master, if it is one."""
        if fd == self._meanwhile.lifeline:
            self.poll.unregister(fd)
            self._meanwhile.on_orphaned()
        elif fd == self._client.fileno():
            # Its events last, and to be told once is enough.
            self.poll.unregister(fd)
            self._asks = True
            self._look_at_client()
        else:
            return False
        return True

    def _look_at_client(self) -> None:
        presence = presence_of(self._client)
        if presence is GONE:
            raise ClientGone
        self._asks = self._asks and presence is not SPOKEN
