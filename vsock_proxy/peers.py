"""Who connects: a guest by its CID and port, or a hybrid vsock, which tells neither."""

from __future__ import annotations

from typing import Tuple

Peer = Tuple[int, int]

# Stands for the CID where there is none; a CID has 32 bits, so none is that large.
NO_CID = 1 << 32
UNIX_PEER: Peer = (NO_CID, 0)


def peer_name(peer: Peer) -> str:
    """`CID:PORT`, or `unix`."""
    return f"{peer[0]}:{peer[1]}" if peer[0] != NO_CID else "unix"
