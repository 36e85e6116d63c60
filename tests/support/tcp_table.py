"""What the kernel says of TCP connections on IPv4."""

from __future__ import annotations

from pathlib import Path
from typing import List, NamedTuple

FIN_WAIT1 = "04"
# A timer of keepalive (net/ipv4/tcp_ipv4.c, get_tcp4_sock()).
KEEPALIVE_TIMER = "02"


class Row(NamedTuple):
    """A socket: its own port and the other side's, and codes as /proc/net/tcp has them."""

    near: int
    far: int
    state: str
    timer: str


def rows() -> List[Row]:
    """All of this network."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [Row(_port(line[1]), _port(line[2]), line[3], line[5][:2]) for line in lines]


def _port(address: str) -> int:
    return int(address.split(":")[1], 16)
