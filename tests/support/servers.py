"""TCP servers on loopback that behave as a test needs, each connection in its own thread."""

from __future__ import annotations

import select
import socket
import threading
from pathlib import Path
from typing import Callable, List

Handler = Callable[[socket.socket], None]
CHUNK = 65536


class Server:
    """Serves until closed; remembers the connections that it accepted."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        self._begin(handler, listener, host, listener.getsockname()[1])

    def _begin(self, handler: Handler, listener: socket.socket, host: str, port: int) -> None:
        """host, port: by what the proxy reaches it."""
        self._listener = listener
        self._handler = handler
        self.host = host
        self.port = port
        self.accepted: List[socket.socket] = []
        self._changed = threading.Condition()
        # A thread that waits in accept() does not notice that its listener is closed, and one on
        # vsock cannot be shut down.
        self._closing, self._told_to_close = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for_connections(self, count: int, timeout: float = 20.0) -> List[socket.socket]:
        """The first connections, this number of them, once they are there."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.accepted) >= count, timeout):
                raise AssertionError(f"{len(self.accepted)} connections came, not {count}")
            return self.accepted[:count]

    def close(self) -> None:
        """Stop listening and end all connections; a second time does nothing."""
        if self._listener.fileno() < 0:
            return
        self._closing.close()
        self._thread.join()
        self._told_to_close.close()
        self._listener.close()
        for connection in self.accepted:
            self._end_connection(connection)

    def _end_connection(self, connection: socket.socket) -> None:
        connection.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._told_to_close, select.POLLIN)
        while self._told_to_close.fileno() not in dict(poll.poll()):
            connection, _ = self._listener.accept()
            with self._changed:
                self.accepted.append(connection)
                self._changed.notify_all()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._handler(connection)
        except OSError:
            # The test ended the connection, and checks the result on its side.
            pass


class UnixServer(Server):
    """Serves on a Unix socket. To the proxy it is a VMM, with that port of its guest."""

    def __init__(self, handler: Handler, path: Path, port: int = 5000) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1024)
        self._begin(handler, listener, f"unix:{path}", port)


class VsockServer(Server):
    """Serves on AF_VSOCK, for clients of the loopback."""

    def __init__(self, handler: Handler) -> None:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen(1024)
        self._begin(handler, listener, "vsock:1", listener.getsockname()[1])


def echo(connection: socket.socket) -> None:
    """Send back what comes. Close at the end or at a failure.

    Closing frees the descriptor: a test of thousands of connections may have only a thousand.
    """
    with connection:
        while True:
            data = connection.recv(CHUNK)
            if not data:
                return
            connection.sendall(data)


def answer_at_the_end(connection: socket.socket) -> None:
    """Say what came, once all has come."""
    connection.sendall(b"you said " + read_all(connection))
    connection.close()


def only_hearing(heard: List[bytes]) -> Handler:
    """Send nothing, and say so at once; heard gets what comes, once all has come."""

    def listen(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        connection.close()

    return listen


def silent(connection: socket.socket) -> None:
    """Accept, and neither read nor write."""


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end."""
    parts: List[bytes] = []
    while True:
        data = sock.recv(CHUNK)
        if not data:
            return b"".join(parts)
        parts.append(data)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """This number of bytes; fails if the end comes first."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(CHUNK, size - len(data)))
        if not part:
            raise AssertionError(f"end after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Send data and read back the same amount, at the same time, so that no amount deadlocks."""
    sender = threading.Thread(target=client.sendall, args=(data,), daemon=True)
    sender.start()
    answer = read_exactly(client, len(data))
    sender.join()
    return answer
