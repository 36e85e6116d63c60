"""The two ways to the proxy: a hybrid vsock's Unix socket, and AF_VSOCK itself."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import List

from tests.support.timing import SLOWNESS

VMADDR_CID_LOCAL = 1
CLIENT_TIMEOUT = 20.0


class Hybrid:
    """Connects as a VMM does for its guest."""

    name = "hybrid"

    def __init__(self, folder: Path) -> None:
        self.port = 8000
        self._prefix = folder / "v.sock"
        self.path = folder / f"v.sock_{self.port}"
        # What the proxy calls a client of this transport.
        self.peer_pattern = "unix"

    def options(self) -> List[str]:
        """What the proxy is started with for this transport."""
        return ["--uds-path", str(self._prefix)]

    def connect(self) -> socket.socket:
        """A client's connection."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT * SLOWNESS)
        client.connect(str(self.path))
        return client


class Vsock:
    """Connects over the loopback of AF_VSOCK, as a guest does but for the CID."""

    name = "vsock"

    def __init__(self, folder: Path) -> None:
        del folder
        self.port = random.randrange(1 << 16, 1 << 31)
        self.peer_pattern = rf"{VMADDR_CID_LOCAL}:\d+"

    def options(self) -> List[str]:
        """What the proxy is started with for this transport: nothing."""
        return []

    def connect(self) -> socket.socket:
        """A client's connection."""
        client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT * SLOWNESS)
        client.connect((VMADDR_CID_LOCAL, self.port))
        return client
