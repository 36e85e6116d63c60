"""Stand-ins for VMMs with a hybrid vsock: the guest's is vsock, the host's are Unix sockets.

What they do is what docs/vsock.md of Firecracker says, and where that says nothing, what its source
does: unix/muxer.rs and csm/connection.rs in src/vmm/src/devices/virtio/vsock. The same files of
Cloud Hypervisor, in virtio-devices/src/vsock, were once the same.

    host-initiated     Who connects to PATH says `CONNECT PORT`, as a line. If the guest listens
                       there, the answer is the line `OK N`, N being a port of the host, counted
                       from 2^30; else the connection is closed without a word.
    guest-initiated    A guest that connects to CID 2, PORT gets who listens on PATH_PORT, and no
                       line is said. If nobody listens, it is reset.

    in either          Firecracker                     Cloud Hypervisor, since its change #8372
    the host sends     The guest is told that both     The guest reads an end.
    no more            directions have ended, and
                       then all is closed.
    the guest sends    Nothing.                        The host reads an end.
    no more
    one side closes    The other is closed.            The same.

The guest's sockets are Unix sockets here: what they tell of an end is what those of vsock do.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
from pathlib import Path
from typing import List, Optional

from tests.support.servers import CHUNK, Handler, UnixServer

SHORTEST_REQUEST, LONGEST_REQUEST = len(b"CONNECT 0\n"), 32
FIRST_HOST_PORT = 1 << 30


class Firecracker(UnixServer):
    """The VMM of a guest that listens on one port."""

    passes_ends = False

    def __init__(self, handler: Handler, path: Path, port: int = 5000) -> None:
        """handler: the guest's, for each connection to that port of it."""
        self._guest = handler
        self._host_ports = itertools.count(FIRST_HOST_PORT)
        self._path = path
        self._open: List[socket.socket] = []
        super().__init__(self._take, path, port)

    def connect(self, port: int) -> socket.socket:
        """The guest's connection to a port of the host."""
        host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            host.connect(f"{self._path}_{port}")
        except OSError as error:
            host.close()
            raise ConnectionResetError(f"nobody is there: {error}") from None
        return self._join(host)

    def close(self) -> None:
        """End as if killed, with the connections of both sides."""
        super().close()
        for sock in self._open:
            _end(sock)

    def _end_connection(self, connection: socket.socket) -> None:
        # Threads wait for it.
        _end(connection)

    def _take(self, host: socket.socket) -> None:
        """Serve a connection from the host."""
        if _requested_port(host) != self.port:
            host.close()
            return
        host.sendall(b"OK %d\n" % next(self._host_ports))
        self._guest(self._join(host))

    def _join(self, host: socket.socket) -> socket.socket:
        """The guest's end of a connection whose other end is the host's."""
        near, guest = socket.socketpair()
        # Kept, as a handler need not: a guest's connection does not end with what it runs.
        self._open += [host, near, guest]
        threading.Thread(target=self._carry, args=(host, near), daemon=True).start()
        return guest

    def _carry(self, host: socket.socket, guest: socket.socket) -> None:
        """Carry bytes and ends both ways until both are closed."""
        up = threading.Thread(target=self._carry_up, args=(guest, host), daemon=True)
        up.start()
        with contextlib.suppress(OSError):
            _copy(host, guest)
            if self.passes_ends:
                guest.shutdown(socket.SHUT_WR)
                _wait_for_close(host)
        _end(guest)
        up.join()
        host.close()
        guest.close()

    def _carry_up(self, guest: socket.socket, host: socket.socket) -> None:
        with contextlib.suppress(OSError):
            _copy(guest, host)
            if self.passes_ends:
                host.shutdown(socket.SHUT_WR)
            _wait_for_close(guest)
        _end(host)


class CloudHypervisor(Firecracker):
    """The same, but that either side is told that the other sends no more."""

    passes_ends = True


def _requested_port(host: socket.socket) -> Optional[int]:
    """The port that the host asks for; None if it cannot be read at once and whole."""
    select.select([host], [], [])
    host.setblocking(False)
    try:
        request = host.recv(SHORTEST_REQUEST)
        if len(request) < SHORTEST_REQUEST:
            return None
        while not request.endswith(b"\n") and len(request) < LONGEST_REQUEST:
            byte = host.recv(1)
            if not byte:
                return None
            request += byte
        word, port = request.decode().split()[:2]
        return int(port) if word.lower() == "connect" else None
    except (BlockingIOError, ValueError):
        return None
    finally:
        host.setblocking(True)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    while True:
        data = source.recv(CHUNK)
        if not data:
            return
        sink.sendall(data)


def _wait_for_close(sock: socket.socket) -> None:
    """Wait until both directions are shut, by whichever side."""
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll()


def _end(sock: socket.socket) -> None:
    """Shut both directions. Unlike close(), this wakes a thread that waits for the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
