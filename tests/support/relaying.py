"""A relay alone, between a Unix socket pair and a TCP connection, run by a thread."""

from __future__ import annotations

import socket
import threading
from typing import Callable, List, Optional, Tuple

from vsock_proxy.serving.outcome import Outcome
from vsock_proxy.serving.relay import Relay

SocketPair = Tuple[socket.socket, socket.socket]


def tcp_pair(host: str = "127.0.0.1", source: Optional[Tuple[str, int]] = None) -> SocketPair:
    """Two ends of a TCP connection over loopback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2], source_address=source)
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Relayed:
    """The client's and the endpoint's end of a connection that a relay joins."""

    def __init__(
        self,
        relay: Optional[Relay] = None,
        client_pair: Callable[[], SocketPair] = socket.socketpair,
        endpoint_pair: Callable[[], SocketPair] = tcp_pair,
        idle_timeout: float = 0.0,
    ) -> None:
        """client_pair makes the client's connection, which is a Unix socket if it is not given;
        endpoint_pair makes the endpoint's."""
        self.relay = relay or Relay()
        self.client, self.near_client = client_pair()
        self.near_endpoint, self.endpoint = endpoint_pair()
        for sock in (self.client, self.endpoint):
            sock.settimeout(20)
        self._idle_timeout = idle_timeout
        self._outcomes: List[Outcome] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def outcome(self, timeout: float = 20.0) -> Outcome:
        """How it ended, once it has."""
        self._thread.join(timeout)
        assert self._outcomes, "the relay has not ended"
        return self._outcomes[0]

    def is_running(self) -> bool:
        """Whether the relay goes on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End everything."""
        for sock in (self.client, self.endpoint):
            sock.close()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the relay does not end"

    def _run(self) -> None:
        self._outcomes.append(
            self.relay.run(self.near_client, self.near_endpoint, self._idle_timeout)
        )
        self.near_client.close()
        self.near_endpoint.close()
