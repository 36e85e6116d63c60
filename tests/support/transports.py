"""The ways to the proxy: a hybrid vsock's Unix socket, AF_VSOCK itself, and TCP."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import List, Optional, Tuple, Union

from tests.support.timing import SLOWNESS

VMADDR_CID_ANY, VMADDR_CID_LOCAL = 0xFFFFFFFF, 1
CLIENT_TIMEOUT = 20.0


class Hybrid:
    """Connects as a VMM does for its guest."""

    name = "hybrid"

    def __init__(self, folder: Path) -> None:
        self.port = 8000
        # Also where the VMM itself listens, if there is one.
        self.prefix = folder / "v.sock"
        self.path = self.path_of(self.port)
        # What the proxy calls a client of this transport, and the place where it listens.
        self.peer_pattern = "unix"
        self.place = str(self.port)

    def options(self) -> List[str]:
        """What the proxy is started with for this transport."""
        return ["--uds-path", str(self.prefix)]

    def ports(self, count: int) -> List[int]:
        """This number of ports to listen on, the first of them that of the transport."""
        return list(range(self.port, self.port + count))

    def path_of(self, port: int) -> Path:
        """The Unix socket that stands for a port."""
        return self.prefix.with_name(f"{self.prefix.name}_{port}")

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A client's connection."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT * SLOWNESS)
        return connected(client, str(self.path_of(port or self.port)))

    def occupy(self, port: int) -> socket.socket:
        """Listen where the proxy wants to listen."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path_of(port)))
        listener.listen()
        return listener


class Vsock:
    """Connects over the loopback of AF_VSOCK, as a guest does but for the CID."""

    name = "vsock"

    def __init__(self, folder: Path) -> None:
        del folder
        self.port = random.randrange(1 << 16, 1 << 31)
        self.peer_pattern = rf"{VMADDR_CID_LOCAL}:\d+"
        self.place = str(self.port)

    def options(self) -> List[str]:
        """What the proxy is started with for this transport: nothing."""
        return []

    def ports(self, count: int) -> List[int]:
        """This number of ports to listen on, the first of them that of the transport."""
        return list(range(self.port, self.port + count))

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A client's connection."""
        client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT * SLOWNESS)
        return connected(client, (VMADDR_CID_LOCAL, port or self.port))

    def occupy(self, port: int) -> socket.socket:
        """Listen where the proxy wants to listen."""
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((VMADDR_CID_ANY, port))
        listener.listen()
        return listener


class Tcp:
    """Connects over the loopback of IPv4."""

    name = "tcp"

    def __init__(self, folder: Path) -> None:
        del folder
        # An address that no other test has, so its ports are free; clients come from 127.0.0.1.
        self.address = ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])
        self.port = random.randrange(1 << 10, 1 << 15)
        self.peer_pattern = r"127\.0\.0\.1:\d+"
        self.place = f"{self.address}:{self.port}"

    def options(self) -> List[str]:
        """What the proxy is started with for this transport."""
        return ["--listen-tcp", self.address]

    def ports(self, count: int) -> List[int]:
        """This number of ports to listen on, the first of them that of the transport."""
        return list(range(self.port, self.port + count))

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A client's connection."""
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT * SLOWNESS)
        return connected(client, (self.address, port or self.port))

    def occupy(self, port: int) -> socket.socket:
        """Listen where the proxy wants to listen."""
        return socket.create_server((self.address, port))


def connected(
    client: socket.socket, address: Union[str, Tuple[int, int], Tuple[str, int]]
) -> socket.socket:
    """The client, once it is connected; closed if it is not."""
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client
