"""How long the peer of a TCP socket may be silent: keepalive, and its like for data under way.

The peer may be the client, the endpoint, or both.

Keepalive is off while data is unacknowledged. TCP_USER_TIMEOUT limits that time. If it is set, it
also replaces keepalive's number of probes (tcp_keepalive_timer() in net/ipv4/tcp_timer.c). So both
are set to the same time.

But TCP_USER_TIMEOUT also ends a connection whose peer is alive and only does not read. The window
of that peer is closed, and it answers each probe of the window (tcp_probe_timer() there). So a
timer's signal makes the worker look now and then, and extend the timeout as long as there are
answers. The signal comes whatever the relay waits for, and however busy it is.
"""

from __future__ import annotations

import signal
import socket
import struct
import time
from dataclasses import dataclass
from socket import IPPROTO_TCP
from typing import List

from vsock_proxy.process.kernel import TCP_USER_TIMEOUT
from vsock_proxy.serving.transports import transport_of

# A NAT gateway drops a flow after 350 s without a packet; Linux would probe after 7,200.
KEEPALIVE_IDLE = 120
KEEPALIVE_INTERVAL = 30
KEEPALIVE_PROBES = 4
LIMIT = float(KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL)
LOOKS_WITHIN_LIMIT = 4

# Offsets in struct tcp_info (linux/tcp.h); older kernels return less of it.
TCP_INFO_SIZE = 256
UNACKED, LAST_ACK_RECEIVED, NOT_SENT, SEND_WINDOW = 24, 56, 144, 228
NUMBER = struct.Struct("=I")


@dataclass(frozen=True)
class Standing:
    """The state of a connection: whether its peer takes data, and seconds since its last answer."""

    window_closed: bool
    since_answer: float


class _Watched:
    """One socket that must not be silent."""

    def __init__(self, sock: socket.SocketType, limit: float) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self._sock = sock
        self._limit = limit
        self._open_at = time.monotonic()
        self._bound(limit)

    def look(self) -> None:
        """Extend the timeout if the peer answers but has closed its window."""
        now = time.monotonic()
        standing = read_standing(self._sock.getsockopt(IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE))
        if not standing.window_closed:
            self._open_at = now
        timeout = self._limit + max(0.0, now - standing.since_answer - self._open_at)
        if timeout != self._timeout:
            self._bound(timeout)

    def _bound(self, timeout: float) -> None:
        """The kernel counts from when the window was closed, which is _open_at or soon after."""
        self._timeout = timeout
        self._sock.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, int(timeout * 1000))


class KeepAlive:
    """Ends a connection if a side falls silent; serves one connection after the other."""

    def __init__(self, limit: float = LIMIT) -> None:
        """limit: seconds of silence that end a connection; only tests change it."""
        self._limit = limit
        self._watched: List[_Watched] = []

    def catch_alarms(self) -> None:
        """Look at each SIGALRM. Called before the fork: setting a handler costs a worker memory."""
        signal.signal(signal.SIGALRM, lambda number, frame: self.look())

    def begin(self, *sides: socket.SocketType) -> None:
        """From now on watch these sides, if their transport lets them fall silent."""
        for sock in sides:
            if transport_of(sock).may_fall_silent:
                self._watched.append(_Watched(sock, self._limit))
        if self._watched:
            interval = self._limit / LOOKS_WITHIN_LIMIT
            signal.setitimer(signal.ITIMER_REAL, interval, interval)

    def end(self) -> None:
        """Before the sockets are closed; does nothing where begin() was not called."""
        if self._watched:
            self._watched = []
            signal.setitimer(signal.ITIMER_REAL, 0)

    def look(self) -> None:
        """Extend the timeout of each peer that answers but has closed its window."""
        for watched in self._watched:
            watched.look()


def read_standing(info: bytes) -> Standing:
    """Read the answer of TCP_INFO."""

    def number(offset: int, otherwise: int) -> int:
        if len(info) < offset + NUMBER.size:
            return otherwise
        return int(NUMBER.unpack_from(info, offset)[0])

    # Data waits although nothing is under way: the window has no room for it.
    waiting = number(NOT_SENT, 0) > 0 and number(UNACKED, 0) == 0
    return Standing(
        window_closed=waiting or number(SEND_WINDOW, 1) == 0,
        since_answer=number(LAST_ACK_RECEIVED, 0) / 1000,
    )
