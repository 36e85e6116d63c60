"""Much data in a pattern, so that the receiver knows whether it arrived whole."""

from __future__ import annotations

import hashlib
import socket

from tests.support.servers import CHUNK, read_all
from tests.support.timing import SLOWNESS

MIB = 1 << 20
TRANSFER = int(16 * MIB / SLOWNESS)
BLOCK = bytes(range(256)) * (CHUNK // 256)
BLOCKS = TRANSFER // CHUNK
DIGEST = hashlib.sha256(BLOCK * BLOCKS).digest()


def send_pattern(connection: socket.socket) -> None:
    """An endpoint that sends much, and then ends."""
    for _ in range(BLOCKS):
        connection.sendall(BLOCK)
    connection.shutdown(socket.SHUT_WR)


def is_whole(client: socket.socket, first: bytes = b"") -> bool:
    """Whether all of the pattern arrives after its first bytes, and then the end."""
    return hashlib.sha256(first + read_all(client)).digest() == DIGEST
