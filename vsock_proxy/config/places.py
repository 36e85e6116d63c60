"""Where a service listens, in words: for messages, and to tell one place from another."""

from __future__ import annotations

from typing import Union

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.config.rules import normal_path
from vsock_proxy.settings import ServiceSettings, format_address


def vsock_place(port: int) -> str:
    return f"vsock port {port}"


def unix_place(path: Union[str, bytes]) -> str:
    # Bytes are an abstract address. A path is told from another without what makes no difference.
    return (
        f"Unix socket {path!r}" if isinstance(path, bytes) else f"Unix socket {normal_path(path)}"
    )


def tcp_place(address: str, port: int, v6_only: bool) -> str:
    # Who may come to :: is a part of the place: only a new socket can change it.
    return f"TCP {format_address(address, port)}{', IPv6 only' if v6_only else ''}"


def place_of(service: ServiceSettings) -> str:
    """Where a service listens; no two that are listened on at a time have the same words."""
    return _place(service, service.is_v6_only)


def claim_of(service: ServiceSettings) -> str:
    """The same without what does not let another listen there too."""
    return _place(service, v6_only=False)


def overlap(one: ServiceSettings, other: ServiceSettings) -> bool:
    """Whether two services on TCP cannot both listen, since one address includes the other."""
    return one.local_port == other.local_port and (_includes(one, other) or _includes(other, one))


def _includes(one: ServiceSettings, other: ServiceSettings) -> bool:
    here = parse_address(one.options.listen_tcp or "")
    there = parse_address(other.options.listen_tcp or "")
    if here is None or there is None:
        return False
    covers = here.version == there.version or (here.version == 6 and not one.is_v6_only)
    return here == there or (here.is_unspecified and covers)


def _place(service: ServiceSettings, v6_only: bool) -> str:
    if service.path is not None:
        return unix_place(service.path)
    address, port = service.options.listen_tcp, service.local_port
    return vsock_place(port) if address is None else tcp_place(address, port, v6_only)
