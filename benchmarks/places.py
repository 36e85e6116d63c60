"""Where a proxy or the backend listens, and how the load generator has it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple, Union

TCP, UNIX, VSOCK = "tcp", "unix", "vsock"

LOOPBACK = "127.0.0.1"
VMADDR_CID_LOCAL = 1
CONNECT_TIMEOUT = 60.0

Address = Union[str, Tuple[Union[str, int], int]]


@dataclass(frozen=True)
class Place:
    """A port of TCP or vsock, of this machine, or the Unix socket `path`_`port`.

    count: the number of ports. `port` is the first, the others follow it.
    """

    kind: str
    port: int
    path: Optional[Path] = None
    count: int = 1

    @property
    def ports(self) -> range:
        return range(self.port, self.port + self.count)

    @property
    def target(self) -> str:
        """As the load generator wants it."""
        return ",".join(map(self._target, self.ports))

    @property
    def file(self) -> str:
        """The path of the Unix socket."""
        return self.file_of(self.port)

    def file_of(self, port: int) -> str:
        return f"{self.path}_{port}"

    def _target(self, port: int) -> str:
        return {
            TCP: f"tcp:{port}",
            UNIX: f"unix:{self.file_of(port)}",
            VSOCK: f"vsock:{VMADDR_CID_LOCAL}:{port}",
        }[self.kind]

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A connection to one of the ports, the first if none is named."""
        port = port or self.port
        family, address = self._address(port)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT)
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def _address(self, port: int) -> Tuple[socket.AddressFamily, Address]:
        if self.kind == TCP:
            return socket.AF_INET, (LOOPBACK, port)
        if self.kind == UNIX:
            return socket.AF_UNIX, self.file_of(port)
        return socket.AF_VSOCK, (VMADDR_CID_LOCAL, port)
