"""What one run of the proxy was asked to do: the command line, checked and typed.

Apart from cli.py so that the processes which serve need not know how a command line is parsed.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import FrozenSet, Optional


@dataclass(frozen=True)
class Endpoint:
    """The one TCP service of this run: a host name or a literal address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)


@dataclass(frozen=True)
class Settings:
    """All times are seconds."""

    local_port: int
    endpoint: Endpoint
    family: socket.AddressFamily = socket.AF_UNSPEC
    config: str = "/etc/nitro_enclaves/vsock-proxy.yaml"
    workers: int = 4
    uds_path: Optional[str] = None
    allowed_cids: Optional[FrozenSet[int]] = None
    connect_timeout: float = 10.0
    idle_timeout: float = 0.0
    resolve_interval: float = 15.0
    drain_timeout: float = 30.0
    log_level: str = "info"


def format_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
