"""The listening sockets that the service manager has passed, and which service gets which.

A socket belongs to the service that listens at its address. For a service without such a socket the
proxy binds one itself (listener.py). A socket that no service asks for is an error at the start:
the service manager keeps it open, so a client would wait there forever.

For the same reason no socket is closed before the proxy ends. If a reload removes a service, its
socket stays here, and a later reload that brings the service back uses it again.
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
                    f"systemd passed two sockets for {name}; keep only one ListenStream= for it"
                )
            self._sockets[name] = sock

    def check(self, services: Iterable[ServiceSettings]) -> None:
        """At the start. Raises UnavailableError if there is a socket that no service asks for."""
        left = unasked(self._sockets, services)
        if left:
            raise UnavailableError(
                f"systemd passed {', '.join(left)}, but no service listens there; {AGREE}"
            )

    def warn(self, services: Iterable[ServiceSettings]) -> None:
        """After a reload: then it is only a warning, so that the other services go on."""
        left = unasked(self._sockets, services)
        if left:
            log.warning(
                "systemd holds %(sockets)s, but no service listens there now: clients wait there; "
                "bring the service back and reload, or stop and disable the .socket unit and "
                "restart",
                {"event": "sockets_without_service", "sockets": ", ".join(left)},
            )

    def has(self, service: ServiceSettings) -> bool:
        """Whether the socket of a service was passed."""
        return place_of(service) in self._sockets

    def open(self, service: ServiceSettings) -> Listener:
        """The passed socket, or one bound now. Raises UnavailableError as open_listener() does."""
        sock = self._sockets.get(place_of(service))
        return open_listener(service) if sock is None else take_over(sock)

    @property
    def sockets(self) -> List[socket.socket]:
        """All of them, even those that no service asks for now."""
        return list(self._sockets.values())


def unasked(names: Iterable[str], services: Iterable[ServiceSettings]) -> List[str]:
    """Those of these places at which no service listens."""
    asked = {place_of(service) for service in services}
    return [name for name in names if name not in asked]
