"""A pipe through which the kernel moves bytes from one socket to another without copying them.

splice(2) needs a pipe between two sockets. It has no MSG_DONTWAIT, so both sockets must be
non-blocking (splice_to_socket() in fs/splice.c, tcp_splice_read() in net/ipv4/tcp.c). Python has
it since 3.10; before that, available() says so and bytes are copied.
"""

from __future__ import annotations

import fcntl
import os

# What an unprivileged process may ask for (fs.pipe-max-size); without it, 64 KiB will do.
PIPE_SIZE = 1 << 20
# include/uapi/linux/fcntl.h; fcntl names it only since Python 3.10.
F_SETPIPE_SZ = 1031


def available() -> bool:
    """Whether this Python can splice."""
    return hasattr(os, "splice")


class Pipe:
    """A pipe between two non-blocking sockets, and how many bytes it holds."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        self._reader, self._writer = os.pipe()
        self.held = 0
        try:
            fcntl.fcntl(self._writer, F_SETPIPE_SZ, PIPE_SIZE)
        except PermissionError:
            # The user's pipes together have reached fs.pipe-user-pages-soft.
            pass

    def fill(self) -> int:
        """Take what the source has; 0 at its end. Raises OSError."""
        self.held = os.splice(self._source, self._writer, PIPE_SIZE)
        return self.held

    def drain(self) -> int:
        """Give the sink what it takes. Raises OSError."""
        sent = os.splice(self._reader, self._sink, self.held)
        self.held -= sent
        return sent

    def close(self) -> None:
        """Drop it with what it holds."""
        os.close(self._reader)
        os.close(self._writer)
