"""The listening sockets that the service manager has passed, and which service is to have which.

A socket belongs to the service that listens at its address. The proxy itself binds the listener of
a service that has none of them (listener.py). A socket that no service asks for is an error at
start: a client would wait there forever, as the service manager keeps it open.

For the same reason none is closed before the proxy ends: a reload that removes a service leaves its
socket here, and a later one that brings the service back takes it up again.
"""

from __future__ import annotations

import logging
import socket
from typing import Dict, Iterable, List

from vsock_proxy.config.places import place_of
from vsock_proxy.errors import UnavailableError
from vsock_proxy.serving.listener import (
    Listener,
    open_listener,
    socket_name,
    take_over,
)
from vsock_proxy.settings import ServiceSettings

AGREE = (
    "make ListenStream= of the .socket units agree with <local_port> and --uds-path or "
    "--listen-tcp, or with the services of the file"
)

log = logging.getLogger(__name__)


class Passed:
    """The sockets of one run, by where they listen."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        """Raises UnavailableError if two listen at one place, or if one cannot say where."""
        self._sockets: Dict[str, socket.socket] = {}
        for sock in sockets:
            name = socket_name(sock)
            if name in self._sockets:
                raise UnavailableError(
                    f"systemd passed two sockets for {name}; leave all but one ListenStream= out"
                )
            self._sockets[name] = sock

    def check(self, services: Iterable[ServiceSettings]) -> None:
        """At start. Raises UnavailableError if there is a socket that no service asks for."""
        left = unasked(self._sockets, services)
        if left:
            raise UnavailableError(
                f"systemd passed {', '.join(left)}, but no service listens there; {AGREE}"
            )

    def warn(self, services: Iterable[ServiceSettings]) -> None:
        """After a reload: the same is no error then, so that the other services go on."""
        left = unasked(self._sockets, services)
        if left:
            log.warning(
                "systemd holds %(sockets)s, but no service listens there now: clients wait there; "
                "bring the service back and reload, or stop and disable the .socket unit and "
                "restart",
                {"event": "sockets_without_service", "sockets": ", ".join(left)},
            )

    def has(self, service: ServiceSettings) -> bool:
        """Whether it is passed the socket of a service."""
        return place_of(service) in self._sockets

    def open(self, service: ServiceSettings) -> Listener:
        """Its socket, or one bound now. Raises UnavailableError as open_listener() does."""
        sock = self._sockets.get(place_of(service))
        return open_listener(service) if sock is None else take_over(sock)

    @property
    def sockets(self) -> List[socket.socket]:
        """All of them, also those that no service asks for now."""
        return list(self._sockets.values())


def unasked(names: Iterable[str], services: Iterable[ServiceSettings]) -> List[str]:
    """Which of these places no service listens at."""
    asked = {place_of(service) for service in services}
    return [name for name in names if name not in asked]
