"""The ways that are measured: from where to where a proxy relays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from .places import TCP, UNIX, VSOCK

PARTS = ("loads", "scale", "memory", "starts", "held", "switches", "services", "metrics")


@dataclass(frozen=True)
class Way:
    """One way: where the proxy listens, where the backend does, and which parts are measured."""

    name: str
    title: str
    listens: str
    connects: str
    parts: Tuple[str, ...]

    @property
    def emulated(self) -> bool:
        """Whether it takes the virtual machine, which has an AF_VSOCK of its own."""
        return VSOCK in (self.listens, self.connects)

    @property
    def plot_title(self) -> str:
        return self.title.split(",")[0]


# Memory and the number of connections have nothing to do with the transport, nor with the
# direction.
HYBRID = Way("hybrid", "From a hybrid socket to TCP", UNIX, TCP, PARTS)
VSOCK_TO_TCP = Way(
    "vsock",
    "From AF_VSOCK to TCP, in an emulated virtual machine",
    VSOCK,
    TCP,
    ("loads", "scale", "starts", "switches"),
)
TO_HYBRID = Way("to-hybrid", "From TCP to a hybrid socket", TCP, UNIX, ("loads",))
TO_VSOCK = Way(
    "to-vsock",
    "From TCP to AF_VSOCK, in an emulated virtual machine",
    TCP,
    VSOCK,
    ("loads",),
)
WAYS = {way.name: way for way in (HYBRID, TO_HYBRID, VSOCK_TO_TCP, TO_VSOCK)}
