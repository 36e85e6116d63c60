"""A pipe through which the kernel moves bytes from one socket to another without copying them.

splice(2) needs a pipe between two sockets. It has no MSG_DONTWAIT, so both sockets must be
non-blocking (splice_to_socket() in fs/splice.c, tcp_splice_read() in net/ipv4/tcp.c). Python has
it since 3.10; in an older one available() is false, and bytes are copied.

What splice() says of a socket can be wrong. It stops for good before an urgent mark
(tcp_read_sock()). Then it reports that nothing came, that the source has ended, or that it was
reset, although bytes follow. It may also fail where recv() and send() would not: a seccomp filter
may refuse it, or memory may lack. So when a pipe takes nothing, ask recv(). What a pipe cannot
deliver can be read out of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Optional

from vsock_proxy.process.kernel import F_GETPIPE_SZ, F_SETPIPE_SZ

# Bytes that an unprivileged process may ask for (fs.pipe-max-size).
PIPE_SIZE = 1 << 20
# Bytes that it must get: once the pipes of a user together reach fs.pipe-user-pages-soft, each new
# one gets two pages. Measured processor time a byte, in that of a copy: with 8 KiB 2.5, with 64 KiB
# 1, with 128 KiB 0.8, with 1 MiB 0.5.
WORTHWHILE_SIZE = 128 << 10
# Errors of a connection. Any other is of splice() itself, and the relay goes on by copying.
CONNECTION_ERRORS = frozenset(
    (
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EPIPE,
        errno.EPROTO,
        errno.ETIMEDOUT,
    )
)


def available() -> bool:
    """Whether this Python can splice."""
    return hasattr(os, "splice")


class Pipe:
    """A pipe between two non-blocking sockets.

    held: how many bytes it holds.
    refused: whether splice() failed for a reason of its own; then do not call it again.
    """

    def __init__(self, source: socket.SocketType, sink: socket.SocketType) -> None:
        """Raises OSError if no pipe can be made that is large enough to pay."""
        self._source = source
        self._source_fd, self._sink_fd = source.fileno(), sink.fileno()
        self.held = 0
        self.refused = False
        self._failure: Optional[OSError] = None
        self._reader, self._writer = os.pipe()
        try:
            if _enlarge(self._writer) < WORTHWHILE_SIZE:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            source.setblocking(False)
            sink.setblocking(False)
        except OSError:
            self.close()
            raise

    def fill(self) -> int:
        """Take what the source has; returns 0 if that is nothing, for whatever reason."""
        try:
            self.held = os.splice(self._source_fd, self._writer, PIPE_SIZE)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failure = error
            self.refused = error.errno not in CONNECTION_ERRORS
        return self.held

    def source_error(self) -> Optional[OSError]:
        """Once recv() has said that the source has ended: the error with which it did, if any.

        splice() has taken it from the socket. The error that kept packets from the peer may be any
        errno (tcp_write_err() in net/ipv4/tcp_timer.c), but the socket still reports that one.
        """
        failure = self._failure
        if failure is None or not self.refused:
            return failure
        told = self._source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return failure if failure.errno == told else None

    def drain(self) -> int:
        """Give the sink what it takes; returns 0 if that is nothing, for whatever other reason.

        Raises OSError if the sink's connection is lost.
        """
        try:
            sent = os.splice(self._reader, self._sink_fd, self.held)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in CONNECTION_ERRORS:
                raise
            self.refused = True
            return 0
        self.held -= sent
        return sent

    def read_into(self, view: memoryview) -> int:
        """Take out as much as there is room for."""
        size = os.readv(self._reader, (view,))
        self.held -= size
        return size

    def close(self) -> None:
        """Drop it with what it holds."""
        os.close(self._reader)
        os.close(self._writer)


def _enlarge(pipe: int) -> int:
    """Enlarge a pipe to PIPE_SIZE, if the kernel permits; returns its size."""
    try:
        return fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return fcntl.fcntl(pipe, F_GETPIPE_SZ)
