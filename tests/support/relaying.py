"""A relay alone, between two connections of whatever transports, run by a thread."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import Callable, Dict, List, Optional, Tuple

import pytest

from tests.support.timing import SLOWNESS, let_pass
from tests.support.transports import VMADDR_CID_LOCAL
from vsock_proxy.serving.outcome import Outcome
from vsock_proxy.serving.relay import Relay

SocketPair = Tuple[socket.socket, socket.socket]


def unix_pair() -> SocketPair:
    """Two ends of a connection over a Unix socket."""
    return socket.socketpair()


def tcp_pair(host: str = "127.0.0.1", source: Optional[Tuple[str, int]] = None) -> SocketPair:
    """Two ends of a TCP connection over loopback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2], source_address=source)
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def vsock_pair() -> SocketPair:
    """Two ends of a connection over AF_VSOCK's loopback, as there is in the tests' machine."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        near = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        near.connect((VMADDR_CID_LOCAL, listener.getsockname()[1]))
        far, _ = listener.accept()
    return near, far


PAIRS: Dict[str, Callable[[], SocketPair]] = {
    "TCP": tcp_pair,
    "Unix": unix_pair,
    "vsock": vsock_pair,
}


# The transports of the client and of the endpoint.
Kinds = Tuple[str, str]
EACH_PAIR: List[Kinds] = list(itertools.product(PAIRS, PAIRS))


def on(kinds: Kinds, *more: object) -> object:
    """Parameters of a test, beginning with kinds. It runs only where these transports exist."""
    mark = pytest.mark.vsock_only if "vsock" in kinds else pytest.mark.hybrid_only
    name = ", ".join((" to ".join(kinds), *map(str, more)))
    return pytest.param(kinds, *more, marks=mark, id=name)


class Relayed:
    """A client and an endpoint that a relay joins: the ends that a test holds."""

    def __init__(
        self,
        relay: Optional[Relay] = None,
        kinds: Kinds = ("Unix", "TCP"),
        idle_timeout: float = 0.0,
        endpoint_pair: Optional[SocketPair] = None,
    ) -> None:
        """endpoint_pair: the relay's end and the endpoint's, where it is made by the test."""
        self.relay = relay or Relay()
        self.client, self.near_client = PAIRS[kinds[0]]()
        self.near_endpoint, self.endpoint = endpoint_pair or PAIRS[kinds[1]]()
        for sock in (self.client, self.endpoint):
            sock.settimeout(20 * SLOWNESS)
        self._idle_timeout = idle_timeout
        self._outcomes: List[Outcome] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def outcome(self, timeout: float = 20.0) -> Outcome:
        """How it ended, once it has."""
        self._thread.join(timeout * SLOWNESS)
        assert self._outcomes, "the relay has not ended"
        return self._outcomes[0]

    def is_running(self) -> bool:
        """Whether the relay goes on."""
        return self._thread.is_alive()

    def spins(self) -> bool:
        """Whether it takes processor time while nothing can be moved."""
        before = time.process_time()
        let_pass(0.5, why="a relay that spins would use all of it")
        return time.process_time() - before >= 0.25

    def close(self) -> None:
        """End everything."""
        for sock in (self.client, self.endpoint):
            sock.close()
        self._thread.join(20 * SLOWNESS)
        assert not self._thread.is_alive(), "the relay does not end"

    def _run(self) -> None:
        self._outcomes.append(
            self.relay.run(self.near_client, self.near_endpoint, self._idle_timeout)
        )
        self.near_client.close()
        self.near_endpoint.close()
