"""The master's side of the exporter, the process that serves metrics.

It sees what was there when it was forked. So on a reload another takes its place: that is started
first, and then the one before is told, ends the answers that it has begun, and goes. The listener
is the master's and stays open all the time, so no scrape is refused. If there can be no other, the
one before goes on, and shows the services from before.
"""

from __future__ import annotations

import os
import signal
from typing import Callable, List, Optional

from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.serving.listener import Listener, listen_tcp, listen_unix
from vsock_proxy.settings import MetricsAddress
from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.pacer import Pacer

# It imports much before it does anything, so one that ends at once would take half a processor.
STARTS_PER_SECOND = 1


class Exporting:
    """Keeps an exporter running, where there is an address to serve metrics at."""

    def __init__(
        self,
        address: Optional[MetricsAddress],
        children: Children,
        respawning: Respawning,
        vitals: Vitals,
        be_exporter: Callable[[Listener, int], Optional[int]],
        wanting: Callable[[], None],
    ) -> None:
        """
        be_exporter: what the process does, with its listener and its serial.
        wanting: called when one is to be started again.
        """
        self._address = address
        self._children = children
        self._respawning = respawning
        self._vitals = vitals
        self._be_exporter = be_exporter
        self._wanting = wanting
        self._listener: Optional[Listener] = None
        self._pacer = Pacer(STARTS_PER_SECOND)
        self._pid: Optional[int] = None
        # Whether there is more to see than it sees.
        self._is_outdated = False

    def listen(self) -> None:
        """Listen, if that is wanted. Raises UnavailableError."""
        address = self._address
        if address is None:
            return
        if address.path is not None:
            self._listener = listen_unix(address.path)
        else:
            self._listener = listen_tcp(address.host, address.port, v6_only=False)

    @property
    def descriptors(self) -> List[int]:
        """What only the master and the exporter may hold."""
        listener = self._listener
        return [] if listener is None else [listener.sock.fileno()]

    @property
    def is_missing(self) -> bool:
        """Whether one is to be started."""
        return self._listener is not None and (self._pid is None or self._is_outdated)

    def renew(self) -> None:
        """What there is to see has changed: another is to be started."""
        self._is_outdated = True

    def start(self) -> None:
        """Start one if it is missing. Raises OSError if that cannot be done."""
        listener = self._listener
        if listener is None or not self.is_missing:
            return
        serial = self._vitals.exporter + 1
        before = self._pid
        self._pid = self._children.start(
            lambda: self._be_exporter(listener, serial), lambda status: self._buried(serial, status)
        )
        self._is_outdated = False
        self._vitals.exporter = serial
        if before is not None:
            # Any signal that is caught would do: it sees then that its serial is no longer the one.
            os.kill(before, signal.SIGHUP)

    def end(self) -> None:
        """End it for good, and give the address back."""
        if self._pid is not None:
            self._children.end(self._pid)
            self._pid = None
        if self._listener is not None:
            self._listener.close()
            self._listener.remove()
            self._listener = None

    def _buried(self, serial: int, status: int) -> None:
        if serial != self._vitals.exporter:
            # It was told to go.
            return
        self._pid = None
        self._respawning.another("metrics", status, self._pacer, self._wanting)
