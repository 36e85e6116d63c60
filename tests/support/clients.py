"""What clients of the proxy do in more than one test."""

from __future__ import annotations

import socket
from typing import Optional

from tests.support.program import Proxy


def answers(proxy: Proxy) -> bool:
    """Whether a client gets an answer. Otherwise its connection must end."""
    try:
        # On TCP a proxy that is quick may reset the client before it knows of its connection.
        with proxy.connect() as client:
            client.sendall(b"?")
            return client.recv(1) == b"?"
    except (ConnectionResetError, BrokenPipeError):
        return False


def end_of(client: socket.socket) -> bytes:
    """What comes until the connection ends, even by a reset."""
    try:
        return client.recv(1)
    except ConnectionResetError:
        return b""


def is_refused(proxy: Proxy, port: Optional[int] = None) -> bool:
    """Whether a new client is refused, as if nobody listens."""
    try:
        proxy.connect(port).close()
    except (ConnectionResetError, ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def failure(proxy: Proxy) -> str:
    """Why a client is closed."""
    with proxy.connect() as client:
        assert end_of(client) == b""
    line = proxy.log.wait_for(" closed: cannot connect to ")[-1]
    return line.split("cannot connect to ")[1]
