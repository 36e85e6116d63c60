"""Waiting for the endpoint, with an eye on the client and the master.

Most endpoints answer in a moment; then nothing of this is done. After that moment, a client that
goes away ends the wait, and the worker acts on the end of the master. The poll() that waits for the
endpoint waits for both, too.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass
from typing import Callable, List, Tuple

from vsock_proxy.serving.presence import GONE, SPOKEN, Presence, presence_of

# Seconds that connecting may take before the worker watches anything else.
MOMENT = 0.05
# On vsock, no event reports that a client goes away for good after a half-close, so the worker asks
# at this interval, in seconds.
GONE_CHECK_INTERVAL = 1.0

Events = List[Tuple[int, int]]


class ClientGone(Exception):
    """The client went away and left nothing that could be delivered."""


@dataclass(frozen=True)
class Meanwhile:
    """What a worker watches while it waits.

    lifeline: readable once the master is gone.
    on_lasting: called once when the wait has taken more than a moment.
    on_orphaned: called once, after that, when the master is gone.
    """

    lifeline: int
    on_lasting: Callable[[], None]
    on_orphaned: Callable[[], None]


class Waiting:
    """The wait for one connection.

    poll: register here what to wait for.
    """

    def __init__(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile, began: float
    ) -> None:
        """presence: what was known of the client at `began`, a time.monotonic()."""
        self.poll = select.poll()
        self._client = client
        # A client that has left bytes is served even if it is gone.
        self._served_anyway = presence is SPOKEN
        self._meanwhile = meanwhile
        self._moment = began + MOMENT
        self._lasts = False
        self._asks = False

    def wait(self, until: float) -> Events:
        """The events of what `poll` waits for; none if it takes longer, or other things happened.

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
        """Handle an event of the client or of the master, if it is one."""
        if fd == self._meanwhile.lifeline:
            self.poll.unregister(fd)
            self._meanwhile.on_orphaned()
        elif fd == self._client.fileno():
            # Its events last, and one report is enough.
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
