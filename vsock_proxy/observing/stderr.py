"""Writing to stderr without ever waiting for its reader.

A pipe that nobody reads, a stopped terminal, or a log socket whose service hangs makes a writer
wait, perhaps without end. O_NONBLOCK would help. But it belongs to the open file and not to the
descriptor, and other programs share the open file of stderr. It would surprise them. So stderr is
opened again if possible, and the new file replaces descriptor 2. That also holds for what the
interpreter or a library writes there.

    a socket                      cannot be opened again; send() with MSG_DONTWAIT does not wait
    a file on a disk              stays: it never makes a writer wait, and its position is shared
    a pipe, a terminal, a device  opened again by /proc, with O_NONBLOCK
    if that cannot be done        poll() first says whether there is room (no /proc, or the file
                                  of another user after a change of user)

In the last case another program may take the room between poll() and write(). That is good enough
for a line before the program ends. For serving, a Copier stands in between (copier.py).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import Callable, Iterator, Tuple

STDERR = 2
# A pipe takes this number of bytes whole or not at all.
MOST = select.PIPE_BUF
CUT = b" ..."


class Stderr:
    """Where lines go.

    write: takes at most MOST bytes, and returns how many were written. Raises OSError;
    BlockingIOError means that it would have to wait.
    is_own: whether nothing that other programs do can make write() wait.
    fd: what to poll for room.
    """

    def __init__(self) -> None:
        self.write, self.is_own = _open()
        self.fd = STDERR

    def send_to(self, sock: socket.socket) -> None:
        """Write to this socket from now on."""
        self.write, self.fd = _sender(sock), sock.fileno()

    def write_directly(self) -> None:
        """Write to descriptor 2 again, if there is room."""
        self.write, self.fd = _write_if_there_is_room, STDERR

    def say(self, text: str) -> None:
        """Write as much of a text as can be written now."""
        try:
            for piece in pieces(text):
                self.write(piece)
        except OSError:
            # Nobody reads it, and there is no other place to say so.
            pass


def pieces(text: str) -> Iterator[bytes]:
    """The lines of a text, as many at a time as can be written at once."""
    data = text.encode("utf-8", "backslashreplace") + b"\n"
    while len(data) > MOST:
        end = data.rfind(b"\n", 0, MOST) + 1
        if not end:
            yield _cut(data[:MOST])
            end = data.index(b"\n") + 1
        else:
            yield data[:end]
        data = data[end:]
    if data:
        yield data


def _cut(line: bytes) -> bytes:
    """Most of a line that is too long, without half a character at its end."""
    text = line[: MOST - len(CUT) - 1].decode("utf-8", "ignore")
    return text.encode("utf-8") + CUT + b"\n"


def _open() -> Tuple[Callable[[bytes], int], bool]:
    try:
        mode = os.fstat(STDERR).st_mode
    except OSError:
        return _write, True
    if stat.S_ISSOCK(mode):
        return _sender(socket.socket(fileno=os.dup(STDERR))), True
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return _write, True
    try:
        own = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return _write_if_there_is_room, False
    os.dup2(own, STDERR)
    os.close(own)
    return _write, True


def _write(data: bytes) -> int:
    return os.write(STDERR, data)


def _sender(sock: socket.socket) -> Callable[[bytes], int]:
    return lambda data: sock.send(data, socket.MSG_DONTWAIT)


def _write_if_there_is_room(data: bytes) -> int:
    poll = select.poll()
    poll.register(STDERR, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.write(STDERR, data)
