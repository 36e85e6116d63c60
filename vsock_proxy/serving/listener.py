"""The listening socket: AF_VSOCK, the Unix socket of a hybrid vsock, or TCP.

The module can also check whether listening would succeed. A check does everything but listen, so no
client comes. For a Unix socket it neither makes nor removes a file.

The master binds the socket once, and all workers inherit it. It is non-blocking: one connection may
wake several workers, and only one of them gets it. The sockets that accept() returns are blocking
all the same (accept(2): Linux does not pass O_NONBLOCK on).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.config.places import TcpPlace, tcp_place, unix_place, vsock_place
from vsock_proxy.errors import UnavailableError
from vsock_proxy.observing.peers import Peer, peer_of
from vsock_proxy.process.interpreter import Socket, accept
from vsock_proxy.process.kernel import AF_VSOCK, VMADDR_CID_ANY
from vsock_proxy.settings import EVERY_IPV6_ADDRESS, ServiceSettings

# At run time it is imported only where it is needed: where listening has failed.
if TYPE_CHECKING:
    from vsock_proxy.process.holders import Holder

# The kernel limits it to net.core.somaxconn. It cannot be too large: if the backlog is full, the
# kernel resets a vsock client at once (virtio_transport_recv_listen() in
# net/vmw_vsock/virtio_transport_common.c). A TCP client tries again for a minute or two.
BACKLOG = 2**31 - 1
FIRST_UNPRIVILEGED_PORT = 1024
NO_VSOCK = "this Python was built without AF_VSOCK; use another one, such as that of the system"
WHERE = "this address or on one that includes it (0.0.0.0 and :: include all)"
NO_IPV6 = "this Python was built without IPv6; use another one, such as that of the system"

log = logging.getLogger(__name__)


# Compared by identity: a service that comes back to a passed socket gets another Listener.
@dataclass(frozen=True, eq=False)
class Listener:
    """A listening socket, and the Unix path to remove when it is closed for good.

    passed: whether the service manager holds the socket too (passed.py).
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
                "cannot remove the Unix socket %(path)s: %(reason)s; remove it by hand",
                {
                    "event": "socket_not_removed",
                    "path": self.path,
                    "reason": error.strerror,
                    "errno": error.errno,
                },
            )


def socket_name(sock: socket.socket) -> str:
    """Where a socket listens, in the words of place_of().

    Raises UnavailableError if this Python cannot read the address.
    """
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return unix_place(address)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return _tcp_socket_name(sock, address)
    if isinstance(address[1], bytes):
        # An address that the socket module cannot read.
        raise UnavailableError(f"cannot serve the socket that was passed: {NO_VSOCK}")
    return vsock_place(address[1])


def open_listener(settings: ServiceSettings) -> Listener:
    """Bind and listen. Raises UnavailableError with the cause and what to do."""
    if settings.path is not None:
        return listen_unix(settings.path)
    if settings.options.listen_tcp is not None:
        return listen_tcp(settings.options.listen_tcp, settings.local_port, settings.is_v6_only)
    return _listen_vsock(settings.local_port)


# Checks raise UnavailableError as listening would, and change nothing. They do not see that memory
# for listening lacks. For a Unix socket they see only the permissions of its folder.


def check_tcp(place: TcpPlace, others: Sequence[TcpPlace]) -> None:
    """others: the places where this program would already listen."""
    address, port, v6_only = place
    name = tcp_place(address, port, v6_only)
    sock, sockaddr = _bound_to_tcp(address, port, v6_only)
    with sock:
        if any(place.overlaps(other) for other in others):
            # Two sockets that are only bound do not exclude each other, so bind() succeeded.
            raise UnavailableError(
                f"cannot listen on {name}: {os.strerror(errno.EADDRINUSE)}, held by this proxy "
                f"itself, on {WHERE}"
            )
        _warn_if_loopback_is_down(int(sock.family), name, address, sockaddr)


def check_unix(path: str, others: Sequence[str]) -> None:
    """others: the paths where this program would already listen."""
    from vsock_proxy.process.holders import is_same_path

    try:
        _is_stale(path)
        if any(is_same_path(other, path) for other in others):
            raise UnavailableError(
                f"cannot listen on Unix socket {path}: in use, held by this proxy itself"
            )
        _check_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise _cannot_listen_on_unix(error, path) from None


def check_vsock(port: int) -> None:
    """Whether a vsock port is free."""
    _bound_to_vsock(port).close()


def take_over(sock: socket.socket) -> Listener:
    """A socket of the service manager, without a path to remove: the manager keeps it."""
    return replace(_listening(sock, socket_name(sock)), passed=True)


def _tcp_socket_name(sock: socket.socket, address: Tuple[Any, ...]) -> str:
    if not isinstance(address[0], str):
        # An address that the socket module cannot read.
        raise UnavailableError(f"cannot serve the socket that was passed: {NO_IPV6}")
    host = str(parse_address(address[0]) or address[0])
    if len(address) == 4 and address[3]:
        host = f"{host}%{_interface(address[3])}"
    v6_only = host == EVERY_IPV6_ADDRESS and bool(
        sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return tcp_place(host, address[1], v6_only)


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        # The interface is gone, and nothing reaches the socket any more.
        return str(number)


def _listen_vsock(port: int) -> Listener:
    sock = _bound_to_vsock(port)
    try:
        return _listening(sock, vsock_place(port))
    except OSError as error:
        sock.close()
        raise _cannot_listen_on_vsock(error, port) from None


def _bound_to_vsock(port: int) -> socket.socket:
    name = vsock_place(port)
    try:
        sock = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {name}: {error.strerror}; is the vsock module loaded "
            "(modprobe vsock, on the parent of a microVM modprobe vhost_vsock)?"
        ) from None
    try:
        sock.bind((VMADDR_CID_ANY, port))
        return sock
    except OSError as error:
        sock.close()
        if error.errno is None:
            # The socket module's own error: it cannot write an address of AF_VSOCK.
            raise UnavailableError(f"cannot listen on {name}: {NO_VSOCK}") from None
        raise _cannot_listen_on_vsock(error, port) from None


def _cannot_listen_on_vsock(error: OSError, port: int) -> UnavailableError:
    return UnavailableError(
        f"cannot listen on {vsock_place(port)}: {error.strerror}{_vsock_advice(error, port)}"
    )


def _vsock_advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        from vsock_proxy.process.holders import holder_of_vsock

        holder = _held_by(holder_of_vsock(port))
        if holder:
            return f"{holder}, on that port of some CID"
        return (
            "; another program listens on that port of some CID; as root, ss --vsock -lp shows "
            "which"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and port < FIRST_UNPRIVILEGED_PORT:
        return (
            f"; ports below {FIRST_UNPRIVILEGED_PORT} need CAP_NET_BIND_SERVICE, take a higher one"
        )
    return ""


def listen_unix(path: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        listener = _listening(sock, unix_place(path))
        return replace(listener, path=path, inode=os.stat(path).st_ino)
    except OSError as error:
        sock.close()
        raise _cannot_listen_on_unix(error, path) from None


def _check_folder(folder: str) -> None:
    """Raises OSError if no file can be made there."""
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not found.st_nlink:
        # The working directory was removed.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return
    is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    code = errno.EROFS if is_read_only else errno.EACCES
    raise OSError(code, os.strerror(code))


def _cannot_listen_on_unix(error: OSError, path: str) -> UnavailableError:
    reason = error.strerror
    if error.errno in (errno.EADDRINUSE, errno.EPROTOTYPE):
        from vsock_proxy.process.holders import holder_of_unix

        unknown = " by another program; as root, ss -xlp shows which"
        reason = f"in use{_held_by(holder_of_unix(path)) or unknown}"
    return UnavailableError(f"cannot listen on Unix socket {path}: {reason}")


def _held_by(holder: Optional[Holder]) -> str:
    if holder is None:
        return ""
    is_own = holder.pid == os.getpid()
    return f", held by this proxy itself, pid {holder.pid}" if is_own else f", held by {holder}"


def _remove_stale(path: str) -> None:
    """Remove a Unix socket that no process holds any more. Raises OSError."""
    if _is_stale(path):
        os.unlink(path)


def _is_stale(path: str) -> bool:
    """Whether there is a Unix socket that no process holds any more; False if nothing is there.

    A datagram connect to a live stream socket fails with EPROTOTYPE, and its holder notices
    nothing. To a dead one it fails with ECONNREFUSED (unix_find_bsd() in net/unix/af_unix.c).

    Raises OSError if something else is there.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "exists and is not a socket; remove it or choose another")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def listen_tcp(address: str, port: int, v6_only: bool) -> Listener:
    name = tcp_place(address, port, v6_only)
    sock, sockaddr = _bound_to_tcp(address, port, v6_only)
    try:
        listener = _listening(sock, name)
        _warn_if_loopback_is_down(listener.family, name, address, sockaddr)
        return listener
    except OSError as error:
        sock.close()
        raise _cannot_listen_on_tcp(error, name, address, port) from None


def _bound_to_tcp(address: str, port: int, v6_only: bool) -> Tuple[socket.socket, Tuple[Any, ...]]:
    name = tcp_place(address, port, v6_only)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_ipv6:
        raise UnavailableError(f"cannot listen on {name}: {NO_IPV6}")
    sock = None
    try:
        sockaddr = _sockaddr(address, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
        # Connections of an earlier proxy may still be ending there.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # The system's default may be either (net.ipv6.bindv6only).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        sock.bind(sockaddr)
        return sock, sockaddr
    except OSError as error:
        if sock:
            sock.close()
        raise _cannot_listen_on_tcp(error, name, address, port) from None


def _cannot_listen_on_tcp(error: OSError, name: str, address: str, port: int) -> UnavailableError:
    return UnavailableError(
        f"cannot listen on {name}: {error.strerror}{_tcp_advice(error, address, port)}"
    )


def _warn_if_loopback_is_down(
    family: int, name: str, address: str, sockaddr: Tuple[Any, ...]
) -> None:
    """In an enclave or microVM it is down until somebody brings it up, and bind() still succeeds.

    As long as no interface has been up, the kernel takes each address for a broadcast address
    (__inet_dev_addr_type() in net/ipv4/fib_frontend.c), and it binds to those.
    """
    host = parse_address(address)
    if host is None or not host.is_loopback:
        return
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # On a datagram socket this sends nothing.
            probe.connect(sockaddr)
        except OSError as error:
            if error.errno == errno.ENETUNREACH:
                log.warning(
                    "nobody can connect to %(listener)s: %(reason)s; the loopback interface is "
                    "down, bring it up: ifconfig lo 127.0.0.1",
                    {
                        "event": "loopback_down",
                        "listener": name,
                        "reason": error.strerror,
                        "errno": error.errno,
                    },
                )


def _sockaddr(address: str, port: int) -> Tuple[Any, ...]:
    """The address for bind(), with the number of the zone's interface. Raises OSError."""
    host, _, zone = address.partition("%")
    if not zone:
        return (host, port)
    try:
        return (host, port, 0, socket.if_nametoindex(zone))
    except OSError:
        # The socket module's own error has no errno.
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def _tcp_advice(error: OSError, address: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        from vsock_proxy.process.holders import holder_of_tcp

        holder = _held_by(holder_of_tcp(address, port))
        if holder:
            return f"{holder}, on {WHERE}"
        return (
            f"; another socket, of this program or of another, has that port, on {WHERE}; as "
            "root, ss -tanp shows which"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and port < FIRST_UNPRIVILEGED_PORT:
        return (
            f"; ports below {FIRST_UNPRIVILEGED_PORT} need CAP_NET_BIND_SERVICE: have a .socket "
            "unit pass the port, or set AmbientCapabilities= and CapabilityBoundingSet= of the "
            "unit to it and PrivateUsers=no, or take a higher port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "; a security module such as SELinux forbids it, or "
            "net.ipv4.ip_unprivileged_port_start is higher"
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO):
        return (
            "; this machine does not have the address, or not yet: see `ip address`; with "
            "Wants=network-online.target and After=network-online.target a unit waits for it"
        )
    if error.errno == errno.EINVAL and "%" not in address and ":" in address:
        return "; a link-local address needs its interface, such as fe80::1%eth0"
    if error.errno == errno.EAFNOSUPPORT:
        return "; the system or RestrictAddressFamilies= of the unit does not allow such addresses"
    return ""


def _listening(sock: socket.socket, name: str) -> Listener:
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return Listener(sock, int(sock.family), name)
