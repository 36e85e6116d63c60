"""The two sides of a relay, each of which a test may take."""

from __future__ import annotations

import socket
import struct
from typing import Tuple

import pytest

from tests.support.relaying import Relayed
from vsock_proxy.serving.direction import BUFFER_SIZE
from vsock_proxy.serving.outcome import End

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
CLIENT, ENDPOINT = "client", "endpoint"
SIDES = pytest.mark.parametrize("side", [CLIENT, ENDPOINT])


def sides(relayed: Relayed, side: str) -> Tuple[socket.socket, socket.socket]:
    """A side, and the other one."""
    both = relayed.client, relayed.endpoint
    return both if side == CLIENT else both[::-1]


def closed_by(side: str) -> End:
    return End.CLIENT_CLOSED if side == CLIENT else End.ENDPOINT_CLOSED


def reset_by(side: str) -> End:
    return End.CLIENT_RESET if side == CLIENT else End.ENDPOINT_RESET


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close it: with SO_LINGER this is a reset on TCP, and an ordinary end elsewhere."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def fill(sock: socket.socket) -> None:
    """Write until the relay and both kernel buffers are full."""
    sock.settimeout(0.3)
    try:
        while True:
            sock.send(bytes(BUFFER_SIZE))
    except socket.timeout:
        pass
