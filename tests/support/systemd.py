"""Stands for systemd: the socket that a service notifies, and one that it passes on.

As a program, `python -m tests.support.systemd KIND=ADDRESS ... -- COMMAND ...` becomes the command,
with sockets as the descriptors from 3 on and an environment that says so (sd_listen_fds(3)).
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import sys
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from tests.support.timing import SLOWNESS

FIRST_PASSED_FD = 3


class NotifySocket:
    """What $NOTIFY_SOCKET names; an address that begins with @ is an abstract one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: List[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(re.sub("^@", "\0", address))
        self._socket.settimeout(10 * SLOWNESS)

    def receive(self) -> str:
        """The next message."""
        self.messages.append(self._socket.recv(4096).decode())
        return self.messages[-1]

    def wait_for(self, pattern: str) -> str:
        """The next message that matches; those before it are kept in messages."""
        while True:
            if re.search(pattern, self.receive()):
                return self.messages[-1]

    def is_empty(self) -> bool:
        """Whether no message waits."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Take no more messages; whoever sends one is refused."""
        self._socket.close()


def passing(*sockets: Tuple[str, Path | str]) -> List[str]:
    """The words to put before a command to pass it these sockets, each a kind and an address."""
    words = [f"{kind}={address}" for kind, address in sockets]
    return [sys.executable, "-m", "tests.support.systemd", *words, "--"]


def _unix_listener(address: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    sock.listen()
    return sock.detach()


def _unix_not_listening(address: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    return sock.detach()


def _unix_datagram(address: str) -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    return sock.detach()


def _vsock_listener(address: str) -> int:
    sock = socket.socket(socket.AF_VSOCK)
    sock.bind((socket.VMADDR_CID_ANY, int(address)))
    sock.listen()
    return sock.detach()


def _tcp_listener(address: str) -> int:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family).detach()


def _tcp_dual_stack(address: str) -> int:
    server = socket.create_server(("::", int(address)), family=socket.AF_INET6, dualstack_ipv6=True)
    return server.detach()


def _netlink(address: str) -> int:
    del address
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach()


def _file(address: str) -> int:
    return os.open(address, os.O_RDWR)


KINDS: Dict[str, Callable[[str], int]] = {
    "unix-listener": _unix_listener,
    "unix-not-listening": _unix_not_listening,
    "unix-datagram": _unix_datagram,
    "vsock-listener": _vsock_listener,
    "tcp-listener": _tcp_listener,
    "tcp-dual-stack": _tcp_dual_stack,
    "netlink": _netlink,
    "file": _file,
}


def main() -> None:
    """Become the command."""
    place = sys.argv.index("--")
    sockets, command = sys.argv[1:place], sys.argv[place + 1 :]
    made = [KINDS[kind](address) for kind, address in (word.split("=", 1) for word in sockets)]
    # Out of the way of one another first.
    made = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_PASSED_FD + len(made)) for fd in made]
    for fd, moved in enumerate(made, FIRST_PASSED_FD):
        os.dup2(moved, fd)
    names = ":".join(f"test{number}.socket" for number in range(1, len(made) + 1))
    passed = {"LISTEN_FDS": str(len(made)), "LISTEN_FDNAMES": names}
    os.execvpe(command[0], command, {**passed, **os.environ, "LISTEN_PID": str(os.getpid())})


if __name__ == "__main__":
    main()
