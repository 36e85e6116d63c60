"""What /proc tells about processes, and how one is stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import List, Optional, Set, Union

from tests.support.timing import wait_until

# The same number on each architecture (pidfd_getfd(2)).
SYS_PIDFD_GETFD = 438


def title(pid: int) -> str:
    """The title that `ps` shows, empty for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> List[int]:
    """The pids of a process's children, zombies included."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> Optional[str]:
    """The one-letter state of a process (proc(5)), None once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def processor_ticks(pid: int) -> int:
    """The processor time that a process has had (proc(5)), 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def is_alive(pid: int) -> bool:
    """Whether a process still runs: a zombie does not."""
    return state(pid) not in (None, "Z")


def stop(pid: int) -> None:
    """Let a process stand still until it gets SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T", f"process {pid} is stopped")


def field(path: Union[str, Path], name: str) -> str:
    """The first word of a value in a file of /proc that has lines `name: value`."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    raise AssertionError(f"no {name} in {path}")


def descriptors(pid: int) -> Set[int]:
    """The descriptors of a process."""
    return set(map(int, os.listdir(f"/proc/{pid}/fd")))


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(descriptors(pid))


def pss_kib(pid: int) -> int:
    """The proportional set size: a process's memory, shared pages counted in part."""
    return int(field(f"/proc/{pid}/smaps_rollup", "Pss"))


def context_switches(pid: int) -> int:
    """How often a process gave up the processor by itself: once for each wait."""
    return int(field(f"/proc/{pid}/status", "voluntary_ctxt_switches"))


def anonymous_kib(pid: int) -> int:
    """The proportional size of the memory that is a process's own.

    Unlike that of the files it maps, it does not depend on who else runs Python on this machine.
    """
    return int(field(f"/proc/{pid}/smaps_rollup", "Pss_Anon"))


def file_names(pid: int) -> List[str]:
    """What the descriptors of a process are open on, as /proc names it."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:
            # Closed since.
            continue
    return found


def tcp_sockets(pid: int) -> List[socket.socket]:
    """Duplicates of a process's TCP sockets, for asking what their options are (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        found = [_duplicate(pidfd, fd) for fd in _socket_descriptors(pid)]
    finally:
        os.close(pidfd)
    tcp = [sock for sock in found if sock.family in (socket.AF_INET, socket.AF_INET6)]
    for sock in found:
        if sock not in tcp:
            sock.close()
    return tcp


def _socket_descriptors(pid: int) -> List[int]:
    folder = f"/proc/{pid}/fd"
    return [
        int(name)
        for name in os.listdir(folder)
        if os.readlink(f"{folder}/{name}").startswith("socket:")
    ]


def _duplicate(pidfd: int, fd: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    own = libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
    if own < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=own)
