"""A pipe through which the kernel moves bytes from one socket to another without copying them.

splice(2) needs a pipe between two sockets. It has no MSG_DONTWAIT, so both sockets must be
non-blocking (splice_to_socket() in fs/splice.c, tcp_splice_read() in net/ipv4/tcp.c). Python has
it since 3.10; before that, available() says so and bytes are copied.

What splice() says of a socket is not the whole truth. It stops for good before an urgent mark
(tcp_read_sock()), and says then what it says where nothing came, where the source has ended, or
where it was reset, though bytes follow. And it may fail where recv() and send() would not: a
seccomp filter may refuse it, or memory lack. So when a pipe takes nothing, ask recv(); and what a
pipe cannot deliver can be read out of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Optional

from vsock_proxy.process.kernel import F_GETPIPE_SZ, F_SETPIPE_SZ

# What an unprivileged process may ask for (fs.pipe-max-size).
PIPE_SIZE = 1 << 20
# What it must get: a user whose pipes together have reached fs.pipe-user-pages-soft is given two
# pages. Measured: with 8 KiB a byte costs 2.5 times the processor time of copying it, with 64 KiB
# as much as that, with 128 KiB four fifths, with 1 MiB half.
WORTHWHILE_SIZE = 128 << 10
# Errors that are a connection's: any other is of splice() itself, and copying goes on.
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
    refused: whether splice() failed for a reason of its own; it is not to be called again.
    """

    def __init__(self, source: socket.SocketType, sink: socket.SocketType) -> None:
        """Raises OSError where there can be no pipe that is worth having."""
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
        """Take what the source has; 0 where that is nothing, for whatever reason."""
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

        splice() has taken it from the socket. It may be any errno if it is what kept packets from
        the peer (tcp_write_err() in net/ipv4/tcp_timer.c); then the socket still tells it.
        """
        failure = self._failure
        if failure is None or not self.refused:
            return failure
        told = self._source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return failure if failure.errno == told else None

    def drain(self) -> int:
        """Give the sink what it takes; 0 where that is nothing, for whatever reason but its loss.

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
        """Take out what has room."""
        size = os.readv(self._reader, (view,))
        self.held -= size
        return size

    def close(self) -> None:
        """Drop it with what it holds."""
        os.close(self._reader)
        os.close(self._writer)


def _enlarge(pipe: int) -> int:
    """Make a pipe as large as it should be, if the kernel permits; returns how large it is."""
    try:
        return fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return fcntl.fcntl(pipe, F_GETPIPE_SZ)
