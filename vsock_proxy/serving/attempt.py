"""One non-blocking connect(), on whatever transport."""

from __future__ import annotations

import errno
import socket
from typing import Optional, Tuple, Union

from vsock_proxy.process.interpreter import Socket

KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

Attempt = Tuple[Optional[Socket], int]


def begin(family: int, address: Union[str, Tuple[object, ...]]) -> Attempt:
    """A socket that connects, and its state: 0, EINPROGRESS, or the errno of the failure."""
    try:
        sock = Socket(family, KIND)
    except OSError as error:
        return None, error.errno or errno.EIO
    return sock, sock.connect_ex(address)
