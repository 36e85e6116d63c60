"""A service as a worker sees it: where its clients come from and where they are led to."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import FrozenSet, Optional, Protocol, Tuple, Union

from vsock_proxy.endpoint.addresses import Address
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.presence import Presence
from vsock_proxy.serving.waiting import Meanwhile
from vsock_proxy.settings import Endpoint

# Where a connection leads: one of several addresses, or the endpoint itself.
Where = Union[Address, Endpoint]


class AnyUpstream(Protocol):
    """What makes connections to an endpoint: on TCP, on vsock, or through a VMM."""

    def connect(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile
    ) -> Tuple[socket.SocketType, Where, bytes]:
        """A connected, non-blocking socket, where it leads, and what the endpoint has sent already.

        presence: what is known of the client. Raises ConnectFailed, or ClientGone if the client
        does not wait any more.
        """


# Compared by identity, so finding one among others does not compare their fields.
@dataclass(frozen=True, eq=False)
class Route:
    """
    name: the listening port, or the path if two services have the same port.
    allowed_cids: whom to serve; None: everybody.
    idle_timeout: seconds without a byte that end a connection; 0: never.
    """

    name: str
    listener: Listener
    endpoint: Endpoint
    upstream: AnyUpstream
    allowed_cids: Optional[FrozenSet[int]] = None
    idle_timeout: float = 0.0
