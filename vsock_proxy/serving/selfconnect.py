"""Sockets that TCP has connected to themselves.

Where the endpoint is an address of this machine and a port of the range from which the kernel takes
local ports (ip_local_port_range), and nobody listens there, the kernel may choose just that port
for the connecting end. Both ends of the connection are then one socket: what is sent comes back.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Optional, Tuple

from vsock_proxy.endpoint.addresses import Address

LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_UNPRIVILEGED_PORT, LAST_PORT = 1024, 65535
# How many seconds an address that is another machine's is believed to stay so.
STAYS = 1.0


class SelfConnect:
    """Finds them among the connections to one port."""

    def __init__(self, port: int) -> None:
        first, last = _local_ports()
        self._possible = first <= port <= last
        self._port = port
        self._here: Optional[Address] = None
        self._elsewhere: Optional[Address] = None
        self._seen = 0.0

    def has_made(self, sock: socket.SocketType, address: Address) -> bool:
        """Whether this socket, connected to that address, is connected to itself.

        No system call unless the port is of that range. Then it is one, or where the address is not
        of this machine, two a second.
        """
        if not self._possible:
            return False
        # By identity: a list read anew is judged anew, and comparing addresses takes longer.
        if address is self._elsewhere and time.monotonic() < self._seen + STAYS:
            return False
        near = sock.getsockname()
        if near[1] == self._port:
            return bool(near == sock.getpeername())
        if address is not self._here:
            self._learn(address, near[0] == sock.getpeername()[0])
        return False

    def _learn(self, address: Address, here: bool) -> None:
        """The kernel connects from the address that it connects to, or from another one."""
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
