"""The client's side: TCP on loopback to the proxy's transport, as software in enclaves has it."""

from __future__ import annotations

import socket
import threading
from typing import Callable, List

from tests.support.servers import CHUNK


class Forwarder:
    """Each TCP connection that it accepts becomes one to the proxy."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connect = connect
        self.port: int = self._listener.getsockname()[1]
        self._sockets: List[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more, and end what there is."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = self._connect()
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            data = source.recv(CHUNK)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # An end of the connection is gone; the test sees that on its own socket.
        pass
