"""Which process holds a place where this program wants to listen, as far as /proc shows it.

The kernel says which sockets are bound to a place. /proc/PID/fd says which process has a socket
open; for the processes of other users only root may read it, and a sandbox may hide them
(ProtectProc=). Then no process is found, and the operator has to ask `ss` as root.

    TCP     /proc/self/net/tcp and tcp6
    Unix    /proc/self/net/unix
    vsock   a question to the kernel (sock_diag(7)), because there is no such file; `ss` asks it too

The search looks at each process of the machine. So it is for a program that has failed to listen.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Set

from vsock_proxy.process.kernel import (
    AF_VSOCK,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    VMADDR_CID_ANY,
)

# Seconds for the search through all processes, and for an answer of the kernel.
PATIENCE = 1.0
INIT = 1
SOCKET_LINK = re.compile(r"socket:\[([0-9]+)\]")
# In /proc/self/net/tcp: the local address, the port, the state, all hexadecimal, and the inode.
TCP_LINE = re.compile(r"\s*\d+: ([0-9A-F]+):([0-9A-F]{4}) \S+ ([0-9A-F]{2}) (?:\S+\s+){5}(\d+)")
TCP_LISTEN = "0A"
# In /proc/self/net/unix: the flags (one says that the socket listens), the inode and the path.
UNIX_LINE = re.compile(r"\S+ \S+ \S+ ([0-9A-F]+) \S+ \S+\s+(\d+) (.+)")
UNIX_LISTENS = 1 << 16
WORD = 4
# struct nlmsghdr of linux/netlink.h; vsock_diag_req and vsock_diag_msg of linux/vm_sockets_diag.h.
NLMSG = struct.Struct("=IHHII")
VSOCK_REQUEST = struct.Struct("=BBHIIIII")
VSOCK_MESSAGE = struct.Struct("=BBBBIIIII")
VSOCK_LISTEN = 10
ALL_STATES = 0xFFFFFFFF
LARGEST_ANSWER = 1 << 16

Inodes = FrozenSet[int]


class Holder(NamedTuple):
    """A process, by its command name."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name}, pid {self.pid}"


def holder_of_tcp(address: str, port: int) -> Optional[Holder]:
    """The holder of a TCP port on an address that overlaps this one."""
    host = address.partition("%")[0]
    return _holder(_tcp_inodes(_lines("tcp"), _lines("tcp6"), host, port))


def holder_of_unix(path: str) -> Optional[Holder]:
    """The process that listens on the Unix socket with this path."""
    return _holder(_unix_inodes(_lines("unix"), path))


def holder_of_vsock(port: int) -> Optional[Holder]:
    """The holder of a vsock port on any CID."""
    try:
        answers = list(_ask_for_vsock())
    except OSError:
        # A sandbox, or a kernel without vsock_diag.
        return None
    return _holder(_vsock_inodes(answers, port))


# Which sockets


def _lines(name: str) -> List[str]:
    try:
        text = Path("/proc/self/net", name).read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    return text.splitlines()[1:]


def _tcp_inodes(lines: Iterable[str], lines_6: Iterable[str], host: str, port: int) -> Inodes:
    """The sockets that listen on the port; if none does, the connections that use it."""
    wanted = _packed(host)
    listening: Set[int] = set()
    others: Set[int] = set()
    for line in (*lines, *lines_6):
        found = TCP_LINE.match(line)
        if found and int(found[2], 16) == port and _overlap(wanted, _from_hex(found[1])):
            (listening if found[3] == TCP_LISTEN else others).add(int(found[4]))
    # 0 is a socket that every process has closed.
    return frozenset((listening or others) - {0})


def _unix_inodes(lines: Iterable[str], path: str) -> Inodes:
    inodes: Set[int] = set()
    for line in lines:
        found = UNIX_LINE.fullmatch(line)
        if found and int(found[1], 16) & UNIX_LISTENS and is_same_path(found[3], path):
            inodes.add(int(found[2]))
    return frozenset(inodes)


def _vsock_inodes(answers: Iterable[bytes], port: int) -> Inodes:
    inodes: Set[int] = set()
    for answer in answers:
        _, _, state, _, _, source_port, _, _, inode = VSOCK_MESSAGE.unpack_from(answer)
        if state == VSOCK_LISTEN and source_port == port:
            inodes.add(inode)
    return frozenset(inodes)


def _packed(host: str) -> bytes:
    """An address as 16 bytes, IPv4 mapped into IPv6."""
    return socket.inet_pton(socket.AF_INET6, host if ":" in host else f"::ffff:{host}")


def _from_hex(text: str) -> bytes:
    """The same from /proc/self/net/tcp; there each word has the byte order of this machine."""
    words = [text[place : place + 2 * WORD] for place in range(0, len(text), 2 * WORD)]
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return packed if len(packed) == 4 * WORD else _packed(socket.inet_ntoa(packed))


def _overlap(one: bytes, other: bytes) -> bool:
    """Whether two sockets on these addresses exclude each other, as far as addresses tell."""
    all_4, all_6 = _packed("0.0.0.0"), _packed("::")
    if all_6 in (one, other):
        return True
    if all_4 in (one, other):
        return one[:12] == other[:12]
    return one == other


def is_same_path(bound: str, path: str) -> bool:
    """Whether two paths lead to one Unix socket. Raises OSError."""
    if os.path.basename(bound) != os.path.basename(path):
        # Only a few folders are looked at: that of some other socket may hang.
        return False
    return bound == path or os.path.realpath(bound) == os.path.realpath(path)


def _ask_for_vsock() -> Iterator[bytes]:
    """The kernel's description of each AF_VSOCK socket. Raises OSError."""
    request = VSOCK_REQUEST.pack(AF_VSOCK, 0, 0, ALL_STATES, 0, 0, VMADDR_CID_ANY, VMADDR_CID_ANY)
    head = NLMSG.pack(
        NLMSG.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0
    )
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    ) as sock:
        sock.settimeout(PATIENCE)
        sock.send(head + request)
        while True:
            messages = sock.recv(LARGEST_ANSWER)
            while messages:
                length, kind, _, _, _ = NLMSG.unpack_from(messages)
                if kind in (NLMSG_DONE, NLMSG_ERROR) or length < NLMSG.size:
                    return
                yield messages[NLMSG.size : length]
                # Each begins at a multiple of a word.
                messages = messages[(length + WORD - 1) // WORD * WORD :]


# Which processes


def _holder(inodes: Inodes) -> Optional[Holder]:
    """The process that has one of these sockets open; None if the search finds none in time.

    A master and its workers share a socket; then it is the one whose parent does not have it. The
    first process of a system holds sockets for services, so it counts only if no other does.
    """
    pids = _pids_with(inodes) if inodes else set()
    if len(pids) > 1:
        pids.discard(INIT)
    parents = {pid: _parent(pid) for pid in pids}
    first = min((pid for pid in pids if parents[pid] not in pids), default=None)
    return None if first is None else Holder(_name(first), first)


def _pids_with(inodes: Inodes) -> Set[int]:
    deadline = time.monotonic() + PATIENCE
    found: Set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and any(inode in inodes for inode in _sockets_of(name)):
            found.add(int(name))
        if time.monotonic() > deadline:
            break
    return found


def _sockets_of(pid: str) -> Iterator[int]:
    # This process may lack the right to look, or the other one may have ended.
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            link = SOCKET_LINK.fullmatch(os.readlink(entry.path))
            if link:
                yield int(link[1])


def _parent(pid: int) -> int:
    return int(_status(pid).get("PPid", 0))


def _name(pid: int) -> str:
    return _status(pid).get("Name", "a process")


def _status(pid: int) -> Dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "surrogateescape")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}
