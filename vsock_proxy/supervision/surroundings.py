"""What --check says of the machine: processes, the backlog, and AF_VSOCK.

None of it keeps the proxy from starting. So it is well, a warning, or not visible from here.
"""

from __future__ import annotations

import socket
from typing import Callable, Optional

from vsock_proxy.observing.verdicts import OK, WARNING
from vsock_proxy.process import machine
from vsock_proxy.process.kernel import AF_VSOCK
from vsock_proxy.serving.listener import NO_VSOCK

LOAD_TRANSPORT = (
    "run modprobe vhost_vsock on the host of QEMU or crosvm, and modprobe "
    "vmw_vsock_virtio_transport in a guest or on a Nitro parent"
)

# Takes a level, the word for what was checked, a text, and what JSON has besides.
Tell = Callable[..., None]


def tell_of_processes(tell: Tell, needed: int) -> None:
    """needed: how many processes and threads the proxy has."""
    limits = machine.process_limits()
    text = f"processes: the proxy needs {needed}"
    short = [limit for limit in limits if limit.left < needed]
    for limit in short:
        tell(
            WARNING,
            "processes",
            f"{text}, but {limit.name} leaves room for {limit.left}; raise it with {limit.remedy}, "
            "or lower -w",
            count=needed,
        )
    if not short:
        least = min((limit.left for limit in limits), default=None)
        room = "no limit is visible" if least is None else f"there is room for {least}"
        tell(OK, "processes", f"{text}, and {room}", count=needed)


def tell_of_backlog(tell: Tell, workers: int) -> None:
    """Whether as many clients can wait as there are workers."""
    longest = machine.longest_backlog()
    if longest is None:
        tell(OK, "backlog", "backlog: its length (net.core.somaxconn) is not visible from here")
    elif longest < workers:
        text = (
            f"backlog: only {longest} clients can wait at a listener, fewer than the {workers} "
            f"workers; run sysctl net.core.somaxconn={workers}"
        )
        tell(WARNING, "backlog", text, count=longest)
    else:
        text = f"backlog: {longest} clients can wait at a listener (net.core.somaxconn)"
        tell(OK, "backlog", text, count=longest)


def tell_of_vsock(tell: Tell) -> None:
    """AF_VSOCK, its transports, and the CID of this machine."""
    if not hasattr(socket, "AF_VSOCK"):
        tell(WARNING, "vsock", NO_VSOCK)
        return
    try:
        socket.socket(AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        text = (
            f"AF_VSOCK is not available: {error.strerror}; run modprobe vsock, or permit it in the "
            "sandbox (RestrictAddressFamilies= of a unit, the seccomp profile of a container)"
        )
        tell(WARNING, "vsock", text, errno=error.errno)
        return
    tell(OK, "vsock", "AF_VSOCK is available")
    try:
        cid = machine.own_cid()
    except OSError as error:
        _tell_of_transports(tell, None)
        text = f"the CID of this machine is not visible from here: /dev/vsock: {error.strerror}"
        tell(OK, "vsock", text)
        return
    _tell_of_transports(tell, cid)
    if cid is None:
        tell(WARNING, "vsock", f"this machine has no CID; {LOAD_TRANSPORT}")
    else:
        tell(OK, "vsock", f"this machine has CID {cid}")


def _tell_of_transports(tell: Tell, cid: Optional[int]) -> None:
    found = machine.transports()
    if found:
        listed = ", ".join(f"{name} ({machine.TRANSPORTS[name]})" for name in found)
        tell(OK, "vsock", f"vsock transports: {listed}", count=len(found))
    elif cid is not None:
        # One that is a part of the kernel leaves no trace, except that it gives a CID.
        tell(OK, "vsock", "vsock transports: one that is built into the kernel")
    else:
        text = f"no vsock transport is loaded, so it connects to nobody; {LOAD_TRANSPORT}"
        tell(WARNING, "vsock", text, count=0)
