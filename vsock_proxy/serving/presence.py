"""Whether a client is still there, seen from a socket from which nothing has been read yet.

A client that has ended may have left bytes. These must still be delivered, as TCP would. A client
that ended and sent nothing may still wait for an answer. On a Unix socket and on vsock, a send to
it tells whether it does. A TCP client that has gone for good looks like one that waits, unless it
has reset the connection (see transports.py).
"""

from __future__ import annotations

import enum
import socket

from vsock_proxy.serving.transports import may_send

PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Presence(enum.Enum):
    """What is known of a client."""

    SILENT = enum.auto()
    SPOKEN = enum.auto()
    HALF_CLOSED = enum.auto()
    GONE = enum.auto()


SILENT, SPOKEN, HALF_CLOSED, GONE = Presence


def presence_of(client: socket.SocketType) -> Presence:
    """One system call for a client that has not ended."""
    try:
        if client.recv(1, PEEK):
            return SPOKEN
    except BlockingIOError:
        return SILENT
    except OSError:
        return GONE
    return HALF_CLOSED if may_send(client) else GONE
