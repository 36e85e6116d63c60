"""What each transport can report of a side of a connection, and to that side.

                        TCP                     vsock                   Unix
    sends no more       reads as an end         reads as an end         reads as an end
    is wholly gone      nothing, until it       an empty send() fails;  POLLHUP
                        answers a send with     poll() reports nothing
                        a reset
    has reset           an error                nothing                 an error, if it had not
                                                                        read all
    its machine is      keepalive               reads as an end, an     -
    lost                                        error is pending
    must get an end     shutdown()              shutdown()              shutdown()
    must get a reset    close() with SO_LINGER  close(): sees an end    close(): sees an end

TCP: tcp_poll() and tcp_disconnect() in net/ipv4/tcp.c; tcp_reset() in tcp_input.c, which says EPIPE
instead of ECONNRESET if an end came before. vsock: vsock_poll() and
vsock_connectible_sendmsg() in net/vmw_vsock/af_vsock.c; virtio_transport_close() in
virtio_transport_common.c there, where OP_RST follows each end and is no error;
vhost_vsock_reset_orphans() in drivers/vhost/vsock.c. Unix: unix_poll(), unix_stream_sendmsg() and
unix_release_sock() in net/unix/af_unix.c.

On all of them POLLHUP also comes in peace, once both directions are shut down. A relay sees that
only after it has shut down its own, and then it has nothing more to send that could be lost.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import termios
from dataclasses import dataclass
from typing import Dict, FrozenSet, Optional, Tuple

from vsock_proxy.process.kernel import AF_VSOCK

FAULT = select.POLLERR | select.POLLHUP
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)
NO_INT = bytes(4)


# Compared and hashed by identity, which needs no function in Python.
@dataclass(frozen=True, eq=False)
class Transport:
    """How one kind of socket differs from the others.

    has_reset: closing it can send a reset, and it reports a reset of its peer.
    must_be_asked: poll() does not report that its peer is wholly gone; an empty send() does.
    delays: the kernel may hold a small write back until the one before it is acknowledged.
    may_fall_silent: nothing reports that its peer's machine is lost.
    """

    has_reset: bool = False
    must_be_asked: bool = False
    delays: bool = False
    may_fall_silent: bool = False


TCP = Transport(has_reset=True, delays=True, may_fall_silent=True)
VSOCK = Transport(must_be_asked=True)
UNIX = Transport()

BY_FAMILY: Dict[int, Transport] = {
    socket.AF_INET: TCP,
    socket.AF_INET6: TCP,
    AF_VSOCK: VSOCK,
    socket.AF_UNIX: UNIX,
}

# From which source to which sink a pipe costs less than a copy. Measured processor time, in that of
# a copy: TCP to TCP 0.47, TCP to Unix 0.40, Unix to Unix 0.68, vsock to TCP 0.76, vsock to Unix
# 0.56; but Unix to TCP 1.90. To vsock, each page would be a packet of its own (pipe_to_sendpage()
# in fs/splice.c, before Linux 6.5), at the cost of the other side.
SPLICED: FrozenSet[Tuple[Transport, Transport]] = frozenset(
    (
        (TCP, TCP),
        (TCP, UNIX),
        (UNIX, UNIX),
        (VSOCK, TCP),
        (VSOCK, UNIX),
    )
)


def transport_of(sock: socket.SocketType) -> Transport:
    """The transport of a socket."""
    return BY_FAMILY[sock.family]


def pays_to_splice(source: socket.SocketType, sink: socket.SocketType) -> bool:
    """Whether bytes in bulk should go through a pipe between these."""
    return (transport_of(source), transport_of(sink)) in SPLICED


def is_gone(sock: socket.SocketType, event: int) -> bool:
    """Whether the peer of a socket, which has ended, is wholly gone and receives nothing any more.

    event: what poll() has just reported of the socket. Changes nothing.
    """
    return bool(event & FAULT) or (BY_FAMILY[sock.family].must_be_asked and not may_send(sock))


def may_send(sock: socket.SocketType) -> bool:
    """Whether something may be sent, even if there is no room for it now. Changes nothing."""
    try:
        sock.send(b"", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def take_error(sock: socket.SocketType) -> Optional[OSError]:
    """Take the error that the kernel keeps for a socket."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


def unsent(fd: int) -> int:
    """Bytes that a peer has not acknowledged on TCP, or not read on a Unix socket.

    A Unix socket counts memory, a packet of up to 37 KiB at a time. Since Linux 6.12 vsock counts
    what the other side's kernel does not have yet; before, it reports an error. Only POLLOUT
    shows that a vsock peer reads.
    """
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, NO_INT), sys.byteorder)
    except OSError:
        return 0


def reset_on_close(*sides: socket.SocketType) -> None:
    """From now on closing sends a reset, even if the process dies and the kernel closes.

    If the transport has none, it stays an end.
    """
    for sock in sides:
        if BY_FAMILY[sock.family].has_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def end_on_close(*sides: socket.SocketType) -> None:
    """From now on closing sends an end, as without reset_on_close()."""
    for sock in sides:
        if BY_FAMILY[sock.family].has_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, END_ON_CLOSE)


def send_at_once(sock: socket.SocketType) -> None:
    """From now on the kernel sends a small write before the last one is acknowledged."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
