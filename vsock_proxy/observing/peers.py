"""Who connects: a guest by its CID and port, or a hybrid vsock, which tells neither."""

from __future__ import annotations

from typing import Tuple

Peer = Tuple[int, int]

# Stands for the CID where there is none; a CID has 32 bits, so none is that large.
NO_CID = 1 << 32
UNIX_PEER: Peer = (NO_CID, 0)


def peer_of(address: object) -> Peer:
    """The peer for the address that accept() gives.

    AF_VSOCK: a tuple of CID and port. AF_UNIX: the name that the client has bound itself to, which
    says nothing of the guest behind it: '' or None for no name, a str for a path, bytes for an
    abstract name.
    """
    return address if type(address) is tuple else UNIX_PEER


def peer_name(peer: Peer) -> str:
    """`CID:PORT`, or `unix`."""
    return f"{peer[0]}:{peer[1]}" if peer[0] != NO_CID else "unix"
