"""The master's side of the exporter, the process that serves metrics.

An exporter sees the services that existed when it was forked. So on a reload another replaces it.
The new one starts first. Then a signal tells the old one to finish its answers and to end. The
master holds the listener open all the time, so no scrape is refused. If no new exporter can be
started, the old one goes on, and shows the old services.
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

# An exporter first imports much. One that always ends at once would take half a processor.
STARTS_PER_SECOND = 1


class Exporting:
    """Keeps an exporter running if there is an address for metrics."""

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
        be_exporter: what the process does; gets its listener and its serial.
        wanting: called when an exporter has to be started again.
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
        # Whether the services have changed since it was forked.
        self._is_outdated = False

    def listen(self) -> None:
        """Listen if there is an address. Raises UnavailableError."""
        address = self._address
        if address is None:
            return
        if address.path is not None:
            self._listener = listen_unix(address.path)
        else:
            self._listener = listen_tcp(address.host, address.port, v6_only=False)

    @property
    def descriptors(self) -> List[int]:
        """The descriptors that only the master and the exporter may hold."""
        listener = self._listener
        return [] if listener is None else [listener.sock.fileno()]

    @property
    def is_missing(self) -> bool:
        """Whether an exporter has to be started."""
        return self._listener is not None and (self._pid is None or self._is_outdated)

    def renew(self) -> None:
        """The services have changed: another exporter has to be started."""
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
            # The signal only wakes it. It then sees that its serial is no longer the newest.
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
            # It was told to end.
            return
        self._pid = None
        self._respawning.another("metrics", status, self._pacer, self._wanting)
