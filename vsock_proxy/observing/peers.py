"""Who connects: a guest with CID and port, a hybrid vsock, which shows neither, or a TCP client.

A peer is a tuple of numbers, so that the scoreboard can hold it. For vsock it is the tuple that
accept() gives, and for a Unix socket it is always the same, so neither costs anything.

    vsock   CID, port
    Unix    UNIX_PEER
    TCP     TCP_PEER, port, and the address as 128 bits, an IPv4 one mapped into IPv6
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Tuple

from vsock_proxy.settings import format_address

Peer = Tuple[int, ...]

# Stand in place of a CID. A CID has 32 bits, so none is that large.
NO_CID, TCP_PEER = 1 << 32, 2 << 32
UNIX_PEER: Peer = (NO_CID, 0)
BITS = struct.Struct("!QQ")
# ::ffff:0:0/96 (RFC 4291, 2.5.5.2), in text and by the upper half of the lower 64 bits.
MAPPED, MAPPED_HIGH = "::ffff:", 0xFFFF


def peer_of(address: Any) -> Peer:
    """The peer for the address that accept() gives.

    AF_VSOCK: a tuple of CID and port. AF_UNIX: the name to which the client has bound itself: ''
    or None for no name, a str for a path, bytes for an abstract name. It says nothing of the guest.
    TCP: a tuple that begins with the host and the port.
    """
    if type(address) is not tuple:
        return UNIX_PEER
    if type(address[0]) is not str:
        return address
    host = address[0]
    packed = socket.inet_pton(socket.AF_INET6, host if ":" in host else MAPPED + host)
    return (TCP_PEER, address[1], *BITS.unpack(packed))


def peer_name(peer: Peer) -> str:
    """`CID:PORT`, `unix`, or `address:port`. Ignores the cells that such a peer does not use."""
    kind, port = peer[0], peer[1]
    if kind < NO_CID:
        return f"{kind}:{port}"
    return format_address(_host(peer[2], peer[3]), port) if kind == TCP_PEER else "unix"


def _host(high: int, low: int) -> str:
    """Faster than host_of(), because the line of each connection needs it."""
    packed = BITS.pack(high, low)
    if high == 0 and low >> 32 == MAPPED_HIGH:
        return socket.inet_ntoa(packed[-4:])
    return socket.inet_ntop(socket.AF_INET6, packed)
