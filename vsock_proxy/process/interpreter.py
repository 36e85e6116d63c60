"""Savings from CPython beyond its documented interface, and from doing things at the right time.

Each says what it saves, and has a fallback for an interpreter that lacks what it needs.

Processor time is that of a short connection. On CPython 3.13 and an AMD EPYC it is 59 us, without
the cost of waiting. Memory is a worker's own: 0.4 MiB fresh on CPython 3.13 and 1.0 MiB once it has
served, 0.9 and 2.1 MiB on 3.11. The first call of a function costs a child pages, because CPython
counts references there and begins to watch what is worth caching.

This is also why some attributes are not properties, such as Signals.reader and Lifeline.reader:
together 50 KiB on 3.11, nothing on 3.13.
"""

from __future__ import annotations

import gc
import signal
import socket
from typing import Any, Callable, Iterable, List, Tuple

from vsock_proxy.process.gaps import fill_gaps
from vsock_proxy.process.immortal import make_all_immortal

try:
    import _signal as plain_signal  # type: ignore[import-not-found]
except ImportError:
    plain_signal = signal

# Without the layer in Python, which turns the old mask into enums: 60 KiB on 3.11, nothing on 3.13.
set_signal_mask: Callable[[int, Iterable[int]], object] = plain_signal.pthread_sigmask

# Often enough for the interpreter to see what is worth caching.
REHEARSALS = 20

# The C type below socket.socket: 1.2 us less for a connection to an endpoint. It has all that is
# needed here. In an interpreter without such a type it is socket.socket itself.
Socket = socket.SocketType

Accept = Callable[[socket.socket, int], Tuple[Socket, Any]]


def accept_documented(listener: socket.socket, family: int) -> Tuple[Socket, Any]:
    """The next connection and its address."""
    return listener.accept()


def accept_quickly(listener: socket.socket, family: int) -> Tuple[Socket, Any]:
    """The same without the layer in Python, for 2.8 us and 35 to 90 KiB less.

    That layer turns family and type into enums, and asks for the default timeout.
    """
    descriptor, address = listener._accept()  # type: ignore[attr-defined]
    return Socket(family, socket.SOCK_STREAM, 0, descriptor), address


accept: Accept = accept_quickly if hasattr(socket.socket, "_accept") else accept_documented


def share_with_children(*rehearsals: Callable[[], None]) -> List[object]:
    """Before the first fork: let children share all objects, as long as nobody writes to them.

    rehearsals: do what every child does first. The children then share what the interpreter caches
    for it: for a worker's first steps and its log lines 60 to 90 KiB on 3.13 and 150 KiB on 3.11.

    Returns what the caller must keep as long as it forks children.
    """
    for rehearse in rehearsals:
        for _ in range(REHEARSALS):
            rehearse()
    gc.collect()
    make_all_immortal()
    # What the interpreter keeps for reuse lies in gaps too; this frees it.
    gc.collect()
    fillers = fill_gaps()
    # So that the collector does not write to it.
    gc.freeze()
    return fillers


def share_with_first_child() -> None:
    """The same before a child that is forked long before the others and lives as long as they.

    Without this, what they write to afterwards exists twice: 8 MiB on 3.13 and 2.5 MiB on 3.11.
    """
    gc.collect()
    make_all_immortal()
    gc.freeze()
