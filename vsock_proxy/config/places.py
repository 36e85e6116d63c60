"""Where a service listens, in words: for messages, and to tell one place from another."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.config.rules import normal_path
from vsock_proxy.settings import ServiceSettings, format_address


def vsock_place(port: int) -> str:
    return f"vsock port {port}"


def unix_place(path: Union[str, bytes]) -> str:
    # Bytes are an abstract address. Two texts for one path become the same.
    return (
        f"Unix socket {path!r}" if isinstance(path, bytes) else f"Unix socket {normal_path(path)}"
    )


def tcp_place(address: str, port: int, v6_only: bool) -> str:
    # Whether IPv4 clients may come to :: is part of the place: only a new socket can change it.
    return f"TCP {format_address(address, port)}{', IPv6 only' if v6_only else ''}"


def place_of(service: ServiceSettings) -> str:
    """Where a service listens. Two places that can be listened on at once differ in words."""
    return _place(service, service.is_v6_only)


def claim_of(service: ServiceSettings) -> str:
    """The same without `IPv6 only`, which does not let a second service listen there."""
    return _place(service, v6_only=False)


class TcpPlace(NamedTuple):
    """A port of an address of this machine."""

    address: str
    port: int
    v6_only: bool = False

    def overlaps(self, other: TcpPlace) -> bool:
        """Whether only one of the two can listen, because one address includes the other."""
        return self.port == other.port and (self._includes(other) or other._includes(self))

    def _includes(self, other: TcpPlace) -> bool:
        here, there = parse_address(self.address), parse_address(other.address)
        if here is None or there is None:
            return False
        covers = here.version == there.version or (here.version == 6 and not self.v6_only)
        return here == there or (here.is_unspecified and covers)


def tcp_place_of(service: ServiceSettings) -> Optional[TcpPlace]:
    """Where a service listens on TCP; None if it does not."""
    address = service.options.listen_tcp
    return None if address is None else TcpPlace(address, service.local_port, service.is_v6_only)


def _place(service: ServiceSettings, v6_only: bool) -> str:
    if service.path is not None:
        return unix_place(service.path)
    address, port = service.options.listen_tcp, service.local_port
    return vsock_place(port) if address is None else tcp_place(address, port, v6_only)
