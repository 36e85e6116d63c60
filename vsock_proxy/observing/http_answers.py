"""HTTP for few and small requests, safe against unfriendly clients.

One loop and no thread. The time of a client and the size of its request are limited. So a slow or
silent client costs a place and nothing else. The number of places is fixed. If all are taken, the
client that has had its place longest gives way. Each connection has one request. Python's
http.server reads it once it is whole. The answer is sent as fast as the client takes it.
"""

from __future__ import annotations

import io
import select
import socket
import time
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler
from typing import Callable, Dict, Optional, Tuple

MOST_CONNECTIONS = 16
LARGEST_REQUEST = 8 << 10
# Seconds that a client has for its request and for taking the answer.
PATIENCE = 10.0
# Seconds without a further accept() after one has failed, for any reason.
ACCEPT_PAUSE = 0.2
CHUNK = 64 << 10
TOO_LONG = (
    b"HTTP/1.0 431 Request Header Fields Too Large\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
TEXT = "text/plain; charset=utf-8"

# From path and Accept of a request to status, type and body of the answer.
Answer = Tuple[int, str, bytes]
Respond = Callable[[str, str], Answer]


@dataclass
class _Connection:
    """One client. rest: the part of the answer still to be sent; None: there is no answer yet."""

    sock: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    rest: Optional[memoryview] = None


class Answers:
    """Listens and answers, as long as its owner calls it.

    poll: its owner sleeps in it, and calls told_by() for what it finds.
    """

    def __init__(self, listener: socket.socket, respond: Respond, poll: select.poll) -> None:
        self._listener: Optional[socket.socket] = listener
        self._respond = respond
        self._poll = poll
        # By descriptor, oldest first.
        self._connections: Dict[int, _Connection] = {}
        poll.register(listener, select.POLLIN)

    @property
    def due(self) -> Optional[float]:
        """When to call look(), by time.monotonic(); None: not at all."""
        return min((one.deadline for one in self._connections.values()), default=None)

    @property
    def is_over(self) -> bool:
        """Whether it has stopped listening, and has no client left."""
        return self._listener is None and not self._connections

    def stop_listening(self) -> None:
        """Accept no more clients. Those that are connected still get their answers."""
        if self._listener is not None:
            self._poll.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def told_by(self, fd: int) -> None:
        """A descriptor is ready; it may be the listener or a client."""
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
        elif fd in self._connections:
            connection = self._connections[fd]
            try:
                self._go_on(connection)
            except BlockingIOError:
                pass
            except OSError:
                # The client is gone.
                self._drop(connection)

    def look(self, now: float) -> None:
        """Drop the clients that have taken too long."""
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                self._drop(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            # The client is gone again, or another process has accepted it.
            return
        except OSError:
            time.sleep(ACCEPT_PAUSE)
            return
        sock.setblocking(False)
        if len(self._connections) == MOST_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))
        self._connections[sock.fileno()] = _Connection(sock, time.monotonic() + PATIENCE)
        self._poll.register(sock, select.POLLIN)

    def _go_on(self, connection: _Connection) -> None:
        """Raises OSError; BlockingIOError means that it goes on later."""
        if connection.rest is None:
            self._receive(connection)
        elif connection.rest:
            self._send(connection)
        elif not connection.sock.recv(CHUNK):
            # What came after the request was read too, so closing does not cut the answer off.
            self._drop(connection)

    def _receive(self, connection: _Connection) -> None:
        data = connection.sock.recv(LARGEST_REQUEST)
        if not data:
            self._drop(connection)
            return
        connection.request += data
        if _is_whole(connection.request):
            answer = _Request(bytes(connection.request), self._respond).answer
        elif len(connection.request) >= LARGEST_REQUEST:
            answer = TOO_LONG
        else:
            return
        connection.rest = memoryview(answer)
        self._poll.modify(connection.sock, select.POLLOUT)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        while connection.rest:
            connection.rest = connection.rest[connection.sock.send(connection.rest) :]
        connection.sock.shutdown(socket.SHUT_WR)
        self._poll.modify(connection.sock, select.POLLIN)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._poll.unregister(connection.sock)
        connection.sock.close()


def _is_whole(request: bytearray) -> bool:
    """Whether all headers have arrived; a body has no meaning here."""
    return b"\r\n\r\n" in request or b"\n\n" in request


class _Request(BaseHTTPRequestHandler):
    """One request in memory. answer: the bytes to send."""

    error_message_format = "%(code)d %(message)s\n"
    error_content_type = TEXT

    def __init__(self, request: bytes, respond: Respond) -> None:
        # The constructor of the base class needs a connection.
        self._respond = respond
        self.rfile = io.BufferedReader(io.BytesIO(request))
        written = io.BytesIO()
        self.wfile = written
        self.handle_one_request()
        self.answer = written.getvalue()

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path, _, _ = self.path.partition("?")
        # Where a request names no HTTP version, Python 3.14 has a dict instead of the headers.
        headers = self.headers if isinstance(self.headers, HTTPMessage) else HTTPMessage()
        accept = ",".join(headers.get_all("Accept", ()))
        status, kind, body = self._respond(path, accept)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def version_string(self) -> str:
        return "vsock-proxy"

    def log_message(self, format: str, *args: object) -> None:
        """A scrape leaves no line in the log."""
