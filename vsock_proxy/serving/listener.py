"""The listening socket: AF_VSOCK, or the Unix socket of a hybrid vsock.

Bound once by the master and inherited by all workers. It is non-blocking, because several workers
may be woken for one connection and all but one must find nothing; what accept() makes of it is
blocking all the same (accept(2): Linux does not pass O_NONBLOCK on).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Optional, Tuple, Union

from vsock_proxy.errors import UnavailableError
from vsock_proxy.observing.peers import Peer, peer_of
from vsock_proxy.process.interpreter import Socket, accept
from vsock_proxy.process.kernel import AF_VSOCK, VMADDR_CID_ANY
from vsock_proxy.settings import ServiceSettings

# The kernel cuts it down to net.core.somaxconn. A vsock client that finds the backlog full is
# reset at once, so it cannot be too large (virtio_transport_recv_listen() in
# net/vmw_vsock/virtio_transport_common.c).
BACKLOG = 2**31 - 1
FIRST_UNPRIVILEGED_PORT = 1024
NO_VSOCK = "this Python was built without AF_VSOCK; use another one, such as that of the system"

log = logging.getLogger(__name__)


# Two are never equal: a service that comes back to a socket that was passed has another one.
@dataclass(frozen=True, eq=False)
class Listener:
    """A bound and listening socket, and the Unix path to remove when it is closed for good.

    passed: the service manager holds the socket too (passed.py).
    """

    sock: socket.socket
    family: int
    name: str
    path: Optional[str] = None
    inode: int = 0
    passed: bool = False

    def accept(self) -> Tuple[Socket, Peer]:
        """The next connection and its peer. Raises OSError."""
        client, address = accept(self.sock, self.family)
        return client, peer_of(address)

    def close(self) -> None:
        """Close this process's copy."""
        self.sock.close()

    def remove(self) -> None:
        """Remove the Unix socket's path, if it is still this listener's, or log why it stays."""
        if self.path is None:
            return
        try:
            if os.lstat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            log.warning(
                "cannot remove the Unix socket %s: %s; remove it by hand", self.path, error.strerror
            )


def listener_name(settings: ServiceSettings) -> str:
    """Where a service listens, in words that no other place has."""
    return _vsock_name(settings.local_port) if settings.path is None else _unix_name(settings.path)


def socket_name(sock: socket.socket) -> str:
    """The same of a socket. Raises UnavailableError where this Python cannot tell."""
    address = sock.getsockname()
    if sock.family != AF_VSOCK:
        return _unix_name(address)
    if isinstance(address[1], bytes):
        # An address that the socket module cannot read.
        raise UnavailableError(f"cannot serve the socket that was passed: {NO_VSOCK}")
    return _vsock_name(address[1])


def open_listener(settings: ServiceSettings) -> Listener:
    """Bind and listen. Raises UnavailableError with the cause and what to do."""
    if settings.path is None:
        return _listen_vsock(settings.local_port)
    return _listen_unix(settings.path)


def take_over(sock: socket.socket) -> Listener:
    """A socket of the service manager, without a path to remove: that is for it to keep."""
    return replace(_listening(sock, socket_name(sock)), passed=True)


def _vsock_name(port: int) -> str:
    return f"vsock port {port}"


def _unix_name(path: Union[str, bytes]) -> str:
    # Bytes are an abstract address. A path is told from another without what makes no difference.
    return (
        f"Unix socket {path!r}" if isinstance(path, bytes) else f"Unix socket {PurePosixPath(path)}"
    )


def _listen_vsock(port: int) -> Listener:
    name = _vsock_name(port)
    try:
        sock = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {name}: {error.strerror}; is the vsock module loaded "
            "(modprobe vsock, on the parent of a microVM modprobe vhost_vsock)?"
        ) from None
    try:
        sock.bind((VMADDR_CID_ANY, port))
        return _listening(sock, name)
    except OSError as error:
        sock.close()
        if error.errno is None:
            # The socket module's own error, where it cannot write an address of AF_VSOCK.
            raise UnavailableError(f"cannot listen on {name}: {NO_VSOCK}") from None
        raise UnavailableError(
            f"cannot listen on {name}: {error.strerror}{_vsock_advice(error, port)}"
        ) from None


def _vsock_advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return "; another program listens on that port of some CID"
    if error.errno in (errno.EACCES, errno.EPERM) and port < FIRST_UNPRIVILEGED_PORT:
        return (
            f"; ports below {FIRST_UNPRIVILEGED_PORT} need CAP_NET_BIND_SERVICE, take a higher one"
        )
    return ""


def _listen_unix(path: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        listener = _listening(sock, _unix_name(path))
        return replace(listener, path=path, inode=os.stat(path).st_ino)
    except OSError as error:
        sock.close()
        reason = "in use by another program" if _in_use(error) else error.strerror
        raise UnavailableError(f"cannot listen on Unix socket {path}: {reason}") from None


def _in_use(error: OSError) -> bool:
    return error.errno in (errno.EADDRINUSE, errno.EPROTOTYPE)


def _remove_stale(path: str) -> None:
    """Remove a Unix socket that no process holds any more.

    A datagram connect to a live stream socket fails with EPROTOTYPE and is not noticed there, to
    a dead one with ECONNREFUSED (unix_find_bsd() in net/unix/af_unix.c).
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "exists and is not a socket; remove it or choose another")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _listening(sock: socket.socket, name: str) -> Listener:
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return Listener(sock, int(sock.family), name)
