"""What this machine has for vsock, and its limits for processes and for the backlog.

A sandbox or a container may hide each of these. That is not an error: then the answer is that it is
not known. For the tests, the functions take the root of the files that they read.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from vsock_proxy.process.kernel import IOCTL_VM_SOCKETS_GET_LOCAL_CID, VMADDR_CID_ANY

ROOT = Path("/")
VSOCK_DEVICE = "dev/vsock"
# The kernel modules that carry vsock, and where they lead.
TRANSPORTS = {
    "vhost_vsock": "to guests",
    "vmw_vsock_virtio_transport": "to the parent",
    "vsock_loopback": "to this machine itself, CID 1",
    "hv_sock": "to and from Hyper-V",
    "vmw_vsock_vmci_transport": "to and from VMware",
}
# A transport that is built into the kernel may have no folder in /sys/module, but it has these.
TRACES = {
    "vhost_vsock": "sys/class/misc/vhost-vsock",
    "vmw_vsock_virtio_transport": "sys/bus/virtio/drivers/vmw_vsock_virtio_transport",
    "hv_sock": "sys/bus/vmbus/drivers/hv_sock",
}
# Limits of the whole machine, by their names for sysctl(8).
SYSCTLS = ("kernel.threads-max", "kernel.pid_max")
UNLIMITED = "max"


@dataclass(frozen=True)
class ProcessLimit:
    """A limit for the number of processes and threads.

    left: how many more it allows.
    remedy: how to raise it.
    """

    name: str
    left: int
    remedy: str


def transports(root: Path = ROOT) -> Tuple[str, ...]:
    """The transports of vsock that are loaded or built in."""
    loaded = {line.split(" ")[0] for line in _text(root / "proc/modules").splitlines()}
    return tuple(
        name
        for name in TRANSPORTS
        if name in loaded
        or (root / "sys/module" / name).exists()
        or (name in TRACES and (root / TRACES[name]).exists())
    )


def own_cid(root: Path = ROOT) -> Optional[int]:
    """The CID of this machine; None if it has none. Raises OSError if it is not visible."""
    fd = os.open(root / VSOCK_DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, struct.pack("I", 0))
    finally:
        os.close(fd)
    (cid,) = struct.unpack("I", answer)
    return None if cid == VMADDR_CID_ANY else int(cid)


def longest_backlog(root: Path = ROOT) -> Optional[int]:
    """How many clients can wait at a listener; None if that is not visible."""
    return _number(root / "proc/sys/net/core/somaxconn")


def process_limits(root: Path = ROOT) -> List[ProcessLimit]:
    """The limits in force, as far as they are visible."""
    return [*_limit_of_user(root), *_limits_of_groups(root), *_limits_of_machine(root)]


def _limit_of_user(root: Path) -> Iterator[ProcessLimit]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # The kernel exempts root.
    if soft != resource.RLIM_INFINITY and os.getuid():
        name = f"the limit of {soft} processes for this user"
        yield ProcessLimit(
            name, max(0, soft - _of_user(root)), "LimitNPROC= in the unit, ulimit -u"
        )


def _of_user(root: Path) -> int:
    """How many processes and threads the user of this process has."""
    count = 0
    for process in (root / "proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                count += len(os.listdir(process / "task"))
        except OSError:
            # It has ended.
            continue
    return count


def _limits_of_groups(root: Path) -> Iterator[ProcessLimit]:
    """The limit of the control group of this process, and of each group around it."""
    for folder in _groups(root):
        most = _text(folder / "pids.max").strip()
        now = _number(folder / "pids.current")
        if most and most != UNLIMITED and now is not None:
            name = f"the limit of {most} processes for the control group {folder.name}"
            yield ProcessLimit(name, max(0, int(most) - now), "TasksMax= in the unit")


def _limits_of_machine(root: Path) -> Iterator[ProcessLimit]:
    # The fourth word is how many run and how many there are (proc_loadavg(5)).
    now = re.fullmatch(r"\S+ \S+ \S+ \d+/(\d+) .*", _text(root / "proc/loadavg").strip())
    for name in SYSCTLS:
        most = _number(root / "proc/sys" / name.replace(".", "/"))
        if most is not None and now:
            left = max(0, most - int(now[1]))
            yield ProcessLimit(f"the limit of {most} for this machine", left, f"sysctl {name}")


def _groups(root: Path) -> Iterator[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):
            top = root / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            yield from (
                folder for folder in (group, *group.parents) if top in (folder, *folder.parents)
            )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> Optional[int]:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None
