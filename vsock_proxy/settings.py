"""What one run of the proxy has to do: the command line, checked and typed.

Separate from cli.py, so that the processes that serve need not know how a command line is parsed.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import FrozenSet, Optional

VSOCK_PREFIX, UNIX_PREFIX = "vsock:", "unix:"
EVERY_IPV6_ADDRESS = "::"
LOG_FORMATS = TEXT, JSON = "text", "json"


@dataclass(frozen=True)
class Endpoint:
    """Where clients are led, as the user wrote it (config/endpoints.py), and a port there.

    host: `vsock:CID`, `unix:PATH`, or for TCP a host name or a literal address.
    """

    host: str
    port: int

    @property
    def is_tcp(self) -> bool:
        """Whether it is reached by IP addresses, perhaps after a lookup."""
        return not self.host.startswith((VSOCK_PREFIX, UNIX_PREFIX))

    @property
    def cid(self) -> Optional[int]:
        """The CID of a vsock port; None if it is not a vsock port."""
        host = self.host
        return int(host[len(VSOCK_PREFIX) :]) if host.startswith(VSOCK_PREFIX) else None

    @property
    def path(self) -> Optional[str]:
        """The Unix socket of the VMM that leads to its guest's ports; None if there is none."""
        return self.host[len(UNIX_PREFIX) :] if self.host.startswith(UNIX_PREFIX) else None

    def __str__(self) -> str:
        return format_address(self.host, self.port) if self.is_tcp else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class ServiceOptions:
    """What the options of the command line say of a service; all times are seconds."""

    family: socket.AddressFamily = socket.AF_UNSPEC
    uds_path: Optional[str] = None
    listen_tcp: Optional[str] = None
    allowed_cids: Optional[FrozenSet[int]] = None
    connect_timeout: float = 10.0
    idle_timeout: float = 0.0
    resolve_interval: float = 15.0


@dataclass(frozen=True)
class ServiceSettings:
    """A listener and the endpoint that its clients are led to.

    workers: how many serve this service alone; None: it shares the workers of the run.
    line: where it begins in the file; 0: it is not from the file. Two services that differ only in
    it are equal.
    """

    local_port: int
    endpoint: Endpoint
    options: ServiceOptions = ServiceOptions()
    workers: Optional[int] = None
    line: int = field(default=0, compare=False)

    @property
    def path(self) -> Optional[str]:
        """The Unix socket to listen on; None if it listens elsewhere."""
        uds_path = self.options.uds_path
        return None if uds_path is None else f"{uds_path}_{self.local_port}"

    @property
    def tcp_place(self) -> Optional[str]:
        """The TCP `address:port` to listen on; None if it listens elsewhere."""
        address = self.options.listen_tcp
        return None if address is None else format_address(address, self.local_port)

    @property
    def is_v6_only(self) -> bool:
        """Whether it listens on all IPv6 addresses, and on no IPv4 address."""
        options = self.options
        return options.listen_tcp == EVERY_IPV6_ADDRESS and options.family == socket.AF_INET6


@dataclass(frozen=True)
class MetricsAddress:
    """Where metrics are served.

    host, port: an address of this machine and a TCP port; or path: a Unix socket.
    """

    host: str = ""
    port: int = 0
    path: Optional[str] = None


@dataclass(frozen=True)
class Settings:
    """All times are seconds.

    check: whether to check everything and serve nothing.
    service: the service of the command line; None: serve those of the file.
    options: those of the command line; they are the defaults of each service of the file.
    metrics: None: they are not served, and what only they need is not counted.
    """

    service: Optional[ServiceSettings] = None
    options: ServiceOptions = ServiceOptions()
    config: str = "/etc/nitro_enclaves/vsock-proxy.yaml"
    workers: int = 4
    drain_timeout: float = 30.0
    log_level: str = "info"
    log_format: str = TEXT
    metrics: Optional[MetricsAddress] = None
    check: bool = False


def format_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
