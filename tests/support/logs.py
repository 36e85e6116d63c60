"""Where a log may go, and what may keep it from going there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tty
from pathlib import Path
from typing import Callable, Dict, List, TextIO

# include/uapi/linux/fcntl.h; fcntl names it only since Python 3.10.
F_SETPIPE_SZ = 1031
CHUNK = 4096


class Sink:
    """Two ends: the program under test writes to one, the test reads the other, or does not."""

    def __init__(self, writer: int, reader: int) -> None:
        self.writer = writer
        self._reader = reader
        os.set_blocking(reader, False)

    def fill(self) -> int:
        """Write until nothing more fits; returns the bytes written. Leaves the file blocking."""
        os.set_blocking(self.writer, False)
        size = 0
        for piece in (b"#" * (CHUNK - 1) + b"\n", b"#\n", b"\n"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    size += os.write(self.writer, piece)
        os.set_blocking(self.writer, True)
        return size

    def read(self) -> bytes:
        """What has been written and not yet read."""
        parts: List[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._reader, 1 << 20)
                if not data:
                    break
                parts.append(data)
        return b"".join(parts)

    def stream(self) -> TextIO:
        """What is written from now on; the writing end is then left to the program."""
        os.set_blocking(self._reader, True)
        os.close(self.writer)
        reader, self._reader, self.writer = self._reader, -1, -1
        return open(reader)

    def close_reader(self) -> None:
        """Leave the program without a reader."""
        os.close(self._reader)
        self._reader = -1

    def close(self) -> None:
        """Close both ends."""
        for end in (self.writer, self._reader):
            if end >= 0:
                os.close(end)


def pipe(folder: Path) -> Sink:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, CHUNK)
    return Sink(writer, reader)


def fifo(folder: Path) -> Sink:
    path = folder / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return Sink(os.open(path, os.O_WRONLY), reader)


def terminal(folder: Path) -> Sink:
    reader, writer = os.openpty()
    tty.setraw(writer)
    return Sink(writer, reader)


def stream_socket(folder: Path) -> Sink:
    return _sockets(socket.SOCK_STREAM)


def datagram_socket(folder: Path) -> Sink:
    return _sockets(socket.SOCK_DGRAM)


def packet_socket(folder: Path) -> Sink:
    return _sockets(socket.SOCK_SEQPACKET)


def _sockets(kind: int) -> Sink:
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    writer, reader = ends
    return Sink(writer.detach(), reader.detach())


KINDS: Dict[str, Callable[[Path], Sink]] = {
    "pipe": pipe,
    "fifo": fifo,
    "terminal": terminal,
    "stream socket": stream_socket,
    "datagram socket": datagram_socket,
    "packet socket": packet_socket,
}
