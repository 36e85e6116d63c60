"""Connecting to a vsock port of a guest, or from a guest to one of its parent.

A non-blocking connect() (vsock_connect() in net/vmw_vsock/af_vsock.c) gives up after 2 s
(VSOCK_DEFAULT_CONNECT_TIMEOUT). For that time the kernel keeps the socket's memory, whatever
happens to the attempt. A longer time would let clients that come and go pile up such sockets, so
it is left as it is. If --connect-timeout is longer, the proxy tries again.

A blocking connect() keeps nothing, but if a signal interrupts it, Python takes it for connected.

A vsock socket cannot be connected to itself: while it connects it answers nobody else, and it takes
its own request for an error.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from select import POLLOUT
from typing import Dict, Tuple

from vsock_proxy.observing import scoreboard
from vsock_proxy.process.kernel import AF_VSOCK
from vsock_proxy.serving.attempt import begin
from vsock_proxy.serving.listener import NO_VSOCK
from vsock_proxy.serving.presence import GONE, Presence
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.waiting import ClientGone, Meanwhile, Waiting
from vsock_proxy.settings import Endpoint

NO_ANSWER = "no answer in time; it has not booted yet, or hangs, or nobody has that CID"
# A peer with a full backlog resets too (virtio_transport_recv_listen() in
# net/vmw_vsock/virtio_transport_common.c).
NOBODY = "nothing listens on that port there, or too many clients wait there already"
NO_WAY = "no vsock transport of this machine leads to that CID"
FORBIDDEN = "a sandbox or a security module forbids it"
# By errno: the cause that the scoreboard counts, and what may be wrong.
FAILURES: Dict[int, Tuple[int, str]] = {
    errno.ECONNRESET: (scoreboard.REFUSED, NOBODY),
    errno.ECONNREFUSED: (scoreboard.REFUSED, NOBODY),
    # It tried to connect to itself.
    errno.EPROTO: (scoreboard.REFUSED, NOBODY),
    errno.ENODEV: (
        scoreboard.UNREACHABLE,
        "there is no guest with that CID now, or a module is not loaded (modprobe vhost_vsock, or "
        "vsock_loopback for CID 1)",
    ),
    errno.ENETUNREACH: (scoreboard.UNREACHABLE, NO_WAY),
    errno.EHOSTUNREACH: (scoreboard.UNREACHABLE, NO_WAY),
    errno.EACCES: (scoreboard.FAILED, FORBIDDEN),
    errno.EPERM: (scoreboard.FAILED, FORBIDDEN),
    errno.EAFNOSUPPORT: (
        scoreboard.FAILED,
        "the vsock module is not loaded (modprobe vsock), or a sandbox forbids AF_VSOCK",
    ),
}


class VsockUpstream:
    """Makes connections to one port of one CID."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        """timeout: seconds until connecting is given up."""
        self._endpoint = endpoint
        self._address = endpoint.cid, endpoint.port
        self._timeout = timeout

    def connect(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile
    ) -> Tuple[socket.SocketType, Endpoint, bytes]:
        """See AnyUpstream; nothing is read from the endpoint here."""
        if presence is GONE:
            raise ClientGone
        if not hasattr(socket, "AF_VSOCK"):
            raise ConnectFailed(NO_VSOCK, scoreboard.FAILED)
        began = time.monotonic()
        deadline = began + self._timeout
        waiting = Waiting(client, presence, meanwhile, began)
        while True:
            sock, code = begin(AF_VSOCK, self._address)
            if sock is None:
                break
            try:
                if code == errno.EINPROGRESS:
                    code = _answer(sock, waiting, deadline)
            except BaseException:
                sock.close()
                raise
            if not code:
                return sock, self._endpoint, b""
            sock.close()
            # The kernel's own limit.
            if code != errno.ETIMEDOUT or time.monotonic() >= deadline:
                break
        if code == errno.ETIMEDOUT:
            raise ConnectFailed(NO_ANSWER, scoreboard.TIMED_OUT, code)
        cause, advice = FAILURES.get(code, (scoreboard.FAILED, ""))
        text = os.strerror(code)
        raise ConnectFailed(f"{text}; {advice}" if advice else text, cause, code)


def _answer(sock: socket.SocketType, waiting: Waiting, deadline: float) -> int:
    """How an attempt under way ends, 0 or an errno."""
    waiting.poll.register(sock, POLLOUT)
    try:
        while not waiting.wait(deadline):
            if time.monotonic() >= deadline:
                return errno.ETIMEDOUT
    finally:
        waiting.poll.unregister(sock)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
