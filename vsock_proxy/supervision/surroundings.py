"""What --check says of the machine: open files, processes, the backlog, and AF_VSOCK.

None of it keeps the proxy from starting. So each verdict is OK or a warning, and some things are
not visible from here.
"""

from __future__ import annotations

import resource
import socket
from typing import Optional

from vsock_proxy.observing.verdicts import OK, WARNING, Verdicts
from vsock_proxy.process import machine
from vsock_proxy.process.kernel import AF_VSOCK
from vsock_proxy.serving.listener import NO_VSOCK
from vsock_proxy.supervision.limits import needed_files

LOAD_TRANSPORT = (
    "run modprobe vhost_vsock on the host of QEMU or crosvm, and modprobe "
    "vmw_vsock_virtio_transport in a guest or on a Nitro parent"
)


def tell_of_files(verdicts: Verdicts, services: int) -> None:
    """How many open files a process may have. Called only if that is enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "any number" if hard == resource.RLIM_INFINITY else str(hard)
    needed = needed_files(services)
    text = f"open files: a process needs {needed}, and may have {most}"
    verdicts.tell(OK, "files", text, count=needed)


def tell_of_processes(verdicts: Verdicts, needed: int) -> None:
    """needed: how many processes and threads the proxy has."""
    limits = machine.process_limits()
    text = f"processes: the proxy needs {needed}"
    short = [limit for limit in limits if limit.left < needed]
    for limit in short:
        verdicts.tell(
            WARNING,
            "processes",
            f"{text}, but {limit.name} leaves room for {limit.left}; raise it with {limit.remedy}, "
            "or lower -w",
            count=needed,
        )
    if not short:
        least = min((limit.left for limit in limits), default=None)
        room = "no limit is visible" if least is None else f"there is room for {least}"
        verdicts.tell(OK, "processes", f"{text}, and {room}", count=needed)


def tell_of_backlog(verdicts: Verdicts, workers: int) -> None:
    """Whether as many clients can wait as there are workers."""
    longest = machine.longest_backlog()
    if longest is None:
        verdicts.tell(
            OK, "backlog", "backlog: its length (net.core.somaxconn) is not visible from here"
        )
    elif longest < workers:
        text = (
            f"backlog: only {longest} clients can wait at a listener, fewer than the {workers} "
            f"workers; run sysctl net.core.somaxconn={workers}"
        )
        verdicts.tell(WARNING, "backlog", text, count=longest)
    else:
        text = f"backlog: {longest} clients can wait at a listener (net.core.somaxconn)"
        verdicts.tell(OK, "backlog", text, count=longest)


def tell_of_vsock(verdicts: Verdicts) -> None:
    """AF_VSOCK, its transports, and the CID of this machine."""
    if not hasattr(socket, "AF_VSOCK"):
        verdicts.tell(WARNING, "vsock", NO_VSOCK)
        return
    try:
        socket.socket(AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        text = (
            f"AF_VSOCK is not available: {error.strerror}; run modprobe vsock, or permit it in the "
            "sandbox (RestrictAddressFamilies= of a unit, the seccomp profile of a container)"
        )
        verdicts.tell(WARNING, "vsock", text, errno=error.errno)
        return
    verdicts.tell(OK, "vsock", "AF_VSOCK is available")
    try:
        cid = machine.own_cid()
    except OSError as error:
        _tell_of_transports(verdicts, None)
        text = f"the CID of this machine is not visible from here: /dev/vsock: {error.strerror}"
        verdicts.tell(OK, "vsock", text)
        return
    _tell_of_transports(verdicts, cid)
    if cid is None:
        verdicts.tell(WARNING, "vsock", f"this machine has no CID; {LOAD_TRANSPORT}")
    else:
        verdicts.tell(OK, "vsock", f"this machine has CID {cid}")


def _tell_of_transports(verdicts: Verdicts, cid: Optional[int]) -> None:
    found = machine.transports()
    if found:
        listed = ", ".join(f"{name} ({machine.TRANSPORTS[name]})" for name in found)
        verdicts.tell(OK, "vsock", f"vsock transports: {listed}", count=len(found))
    elif cid is not None:
        # A transport that is built into the kernel leaves no trace but the CID.
        verdicts.tell(OK, "vsock", "vsock transports: one that is built into the kernel")
    else:
        text = f"no vsock transport is loaded, so it connects to nobody; {LOAD_TRANSPORT}"
        verdicts.tell(WARNING, "vsock", text, count=0)
