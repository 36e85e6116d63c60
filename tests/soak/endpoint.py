"""The endpoint, which does as each client wishes, and tells a part from the whole.

A connection begins with a header: a wish, and how many bytes the client will send before its
half-close. The answer is those bytes, each of them changed. So a connection that led to itself, and
echoes, is noticed, and so is the clean end of an upload of which a part is missing.
"""

from __future__ import annotations

import enum
import socket
import struct
import time
from typing import Iterator, Tuple

from tests.soak.tally import Tally
from tests.support.servers import CHUNK
from tests.support.timing import let_pass

HEADER = struct.Struct("!BQ")
# The size that a client announces if it may leave at any time.
UNKNOWN = 2**64 - 1
# Below 128 are all bytes of a client; what is from 128 on is the urgent byte, which may be lost.
ANSWER = bytes(byte ^ 0x55 for byte in range(128)) + bytes(range(128, 256))
URGENT = b"\xff"
SLOW_BYTES, SLOW_PAUSE, SLOW_SECONDS = 8192, 0.1, 6.0


class Wish(enum.IntEnum):
    """What a client wants of the endpoint."""

    PLAIN = 0
    SLOW = 1  # read little and seldom for some time, and answer at the end
    URGENT = 2  # send urgent data in between


class Endpoint:
    """Serves connections, and tells the tally what is wrong with them."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def serve(self, connection: socket.socket) -> None:
        """Answer one client up to its end."""
        with connection:
            header = _read_header(connection)
            if len(header) < HEADER.size:
                return
            wish, size = HEADER.unpack(header)
            received, rest = self._answer(connection, Wish(wish))
            # In an outage, it is this end that was closed.
            if received != size and size != UNKNOWN and connection.fileno() >= 0:
                self._tally.unexplained(
                    f"the endpoint saw a clean end after {received} of {size} bytes"
                )
            connection.sendall(rest)

    def _answer(self, connection: socket.socket, wish: Wish) -> Tuple[int, bytes]:
        """How much came, and what of the answer is to be sent now that this is known."""
        received, rest = 0, bytearray()
        parts = _slowly(connection) if wish is Wish.SLOW else _at_once(connection)
        for part in parts:
            received += len(part)
            if wish is Wish.SLOW:
                rest += part.translate(ANSWER)
            else:
                connection.sendall(part.translate(ANSWER))
            if wish is Wish.URGENT:
                connection.send(URGENT, socket.MSG_OOB)
        return received, bytes(rest)


def _read_header(connection: socket.socket) -> bytes:
    header = b""
    while len(header) < HEADER.size:
        part = connection.recv(HEADER.size - len(header))
        if not part:
            break
        header += part
    return header


def _at_once(connection: socket.socket) -> Iterator[bytes]:
    while True:
        part = connection.recv(CHUNK)
        if not part:
            return
        yield part


def _slowly(connection: socket.socket) -> Iterator[bytes]:
    until = time.monotonic() + SLOW_SECONDS
    while time.monotonic() < until:
        part = connection.recv(SLOW_BYTES)
        if not part:
            return
        yield part
        let_pass(SLOW_PAUSE, why="the endpoint sends slowly")
    yield from _at_once(connection)
