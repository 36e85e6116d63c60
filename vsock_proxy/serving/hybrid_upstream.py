"""Connecting to a guest's vsock port through its VMM (Firecracker, Cloud Hypervisor).

The VMM listens on a Unix socket. The proxy sends it the line `CONNECT PORT`. Once the guest has
accepted, the VMM answers with the line `OK N`; N is a port on the host's side, and has no use here.
What follows comes from the guest. A guest may speak first, so the proxy hands on what came with
that line. If nothing listens in the guest, the VMM closes the connection without an answer
(docs/vsock.md of Firecracker). The client's first bytes must wait for the answer: Firecracker ends
a connection that sends more before it (recv_pkt() in its vsock/csm/connection.rs).

A Unix socket connects at once or not at all. If the VMM's queue is full, no event reports that
there is room again (unix_stream_connect() in net/unix/af_unix.c), so the proxy tries again.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from select import POLLIN
from typing import Dict, Optional, Tuple

from vsock_proxy.observing import scoreboard
from vsock_proxy.serving.attempt import begin
from vsock_proxy.serving.presence import GONE, Presence
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.waiting import ClientGone, Meanwhile, Waiting
from vsock_proxy.settings import Endpoint

# Bytes of the answer, with the end of its line.
LONGEST_ANSWER = 64
ACCEPTED = re.compile(rb"OK [0-9]{1,10}")
# Seconds until a full queue is tried again.
QUEUE_PAUSE = 0.05

NO_ANSWER = "no answer in time from the VMM"
NO_SOCKET = "the VM is not started yet, or its vsock device has another path"
FORBIDDEN = "the user of this process must be able to write to it and to enter its directories"
# By errno: the cause that the scoreboard counts, and what may be wrong.
FAILURES: Dict[int, Tuple[int, str]] = {
    errno.ENOENT: (scoreboard.UNREACHABLE, NO_SOCKET),
    errno.ENOTDIR: (scoreboard.UNREACHABLE, NO_SOCKET),
    errno.ECONNREFUSED: (
        scoreboard.REFUSED,
        "its VMM has ended and left the file, or it is no socket",
    ),
    errno.EPROTOTYPE: (scoreboard.REFUSED, "it is not the socket of a VMM's vsock device"),
    errno.EACCES: (scoreboard.FAILED, FORBIDDEN),
    errno.EPERM: (scoreboard.FAILED, FORBIDDEN),
}


class HybridUpstream:
    """Makes connections to one port of the guest behind one Unix socket."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        """timeout: seconds until connecting is given up."""
        assert endpoint.path is not None
        self._endpoint = endpoint
        self._path = endpoint.path
        self._request = b"CONNECT %d\n" % endpoint.port
        self._timeout = timeout

    def connect(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile
    ) -> Tuple[socket.SocketType, Endpoint, bytes]:
        """See AnyUpstream."""
        if presence is GONE:
            raise ClientGone
        began = time.monotonic()
        deadline = began + self._timeout
        waiting = Waiting(client, presence, meanwhile, began)
        sock = self._reach_vmm(waiting, deadline)
        try:
            said = self._shake_hands(sock, waiting, deadline)
        except BaseException:
            sock.close()
            raise
        return sock, self._endpoint, said

    def _reach_vmm(self, waiting: Waiting, deadline: float) -> socket.SocketType:
        """A connection to the VMM. Raises ConnectFailed or ClientGone."""
        while True:
            sock, code = begin(socket.AF_UNIX, self._path)
            if sock is not None:
                if not code:
                    return sock
                sock.close()
            now = time.monotonic()
            if sock is not None and code == errno.EAGAIN and now >= deadline:
                text = f"{NO_ANSWER}: it accepts no connection"
                raise ConnectFailed(text, scoreboard.TIMED_OUT, code)
            if sock is None or code != errno.EAGAIN:
                cause, advice = FAILURES.get(code, (scoreboard.FAILED, ""))
                text = os.strerror(code)
                raise ConnectFailed(f"{text}; {advice}" if advice else text, cause, code)
            waiting.wait(min(deadline, now + QUEUE_PAUSE))

    def _shake_hands(self, sock: socket.SocketType, waiting: Waiting, deadline: float) -> bytes:
        """Ask for the port, and read the answer; returns what came after it.

        Raises ConnectFailed or ClientGone.
        """
        answer = b""
        waiting.poll.register(sock, POLLIN)
        try:
            # A new socket has room for it.
            sock.send(self._request)
            while b"\n" not in answer:
                if waiting.wait(deadline):
                    part = sock.recv(LONGEST_ANSWER - len(answer), socket.MSG_DONTWAIT)
                    answer += part
                    if not part or len(answer) == LONGEST_ANSWER:
                        break
                elif time.monotonic() >= deadline:
                    raise ConnectFailed(f"{NO_ANSWER}{_said(answer)}", scoreboard.TIMED_OUT)
        except OSError as error:
            raise self._refused(answer, error) from None
        line, end, said = answer.partition(b"\n")
        if not end or not ACCEPTED.fullmatch(line):
            raise self._refused(line + end, None)
        return said

    def _refused(self, answer: bytes, error: Optional[OSError]) -> ConnectFailed:
        if answer:
            reason = _said(answer)
        else:
            closed = f" ({error.strerror or error})" if error else ""
            reason = (
                f", which closed the connection{closed}; does the guest listen on vsock port "
                f"{self._endpoint.port}?"
            )
        code = error.errno or 0 if error else 0
        return ConnectFailed(f"refused by the VMM{reason}", scoreboard.REFUSED, code)


def _said(answer: bytes) -> str:
    return f", which said {ascii(answer)[1:]}" if answer else ""
