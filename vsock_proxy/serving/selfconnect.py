"""Sockets that TCP has connected to themselves.

It can happen if the endpoint is on this machine, nobody listens on its port, and the port is in the
range of local ports (ip_local_port_range). The kernel may then choose just that port for the
connecting end. Both ends of the connection are one socket: what is sent comes back.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Optional, Tuple

from vsock_proxy.endpoint.addresses import Address

LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_UNPRIVILEGED_PORT, LAST_PORT = 1024, 65535
# Seconds during which an address of another machine is assumed to stay one.
STAYS = 1.0


class SelfConnect:
    """Finds such sockets among the connections to one port."""

    def __init__(self, port: int) -> None:
        first, last = _local_ports()
        self._possible = first <= port <= last
        self._port = port
        self._here: Optional[Address] = None
        self._elsewhere: Optional[Address] = None
        self._seen = 0.0

    def has_made(self, sock: socket.SocketType, address: Address) -> bool:
        """Whether this socket, connected to this address, is connected to itself.

        Costs a system call only if the port is in that range, and for an address of another machine
        only two a second.
        """
        if not self._possible:
            return False
        # By identity: each new list is judged again, and comparing addresses takes longer.
        if address is self._elsewhere and time.monotonic() < self._seen + STAYS:
            return False
        near = sock.getsockname()
        if near[1] == self._port:
            return bool(near == sock.getpeername())
        if address is not self._here:
            self._learn(address, near[0] == sock.getpeername()[0])
        return False

    def _learn(self, address: Address, here: bool) -> None:
        """here: whether the kernel connects from the address that it connects to."""
        if here:
            self._here = address
        else:
            self._elsewhere = address
            self._seen = time.monotonic()


def _local_ports() -> Tuple[int, int]:
    try:
        first, last = LOCAL_PORT_RANGE.read_text().split()
        return int(first), int(last)
    except (OSError, ValueError):
        # Hidden by a sandbox; this is the widest that it usually is.
        return FIRST_UNPRIVILEGED_PORT, LAST_PORT
