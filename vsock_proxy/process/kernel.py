"""Numbers of the kernel's interface for which this Python may have no name.

A Python has the names that were in the C library's headers when it was built. Portable builds, such
as Anaconda's, use an old C library, and lack names that the kernel has had for years. The numbers
never change, because programs are compiled with them. These are the numbers of x86 and ARM.
"""

from __future__ import annotations

import fcntl
import select
import signal
import socket

# glibc 2.24, kernel 4.5 (include/uapi/linux/eventpoll.h).
EPOLLEXCLUSIVE: int = getattr(select, "EPOLLEXCLUSIVE", 1 << 28)
# glibc 2.18, kernel 3.9 (include/linux/socket.h, include/uapi/linux/vm_sockets.h).
AF_VSOCK: int = getattr(socket, "AF_VSOCK", 40)
VMADDR_CID_ANY: int = getattr(socket, "VMADDR_CID_ANY", 0xFFFFFFFF)
# Kernel 5.6.
VMADDR_CID_LOCAL = 1
# For /dev/vsock (include/uapi/linux/vm_sockets.h).
IOCTL_VM_SOCKETS_GET_LOCAL_CID: int = getattr(socket, "IOCTL_VM_SOCKETS_GET_LOCAL_CID", 0x7B9)
# Python has names for none of these (include/uapi/linux/netlink.h, linux/sock_diag.h).
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 0x1, 0x300, 2, 3
# glibc 2.15, kernel 2.6.37 (include/uapi/linux/tcp.h).
TCP_USER_TIMEOUT: int = getattr(socket, "TCP_USER_TIMEOUT", 18)
# Python has their names only since 3.10 and 3.11 (include/uapi/linux/fcntl.h, asm/signal.h).
F_SETPIPE_SZ: int = getattr(fcntl, "F_SETPIPE_SZ", 1031)
F_GETPIPE_SZ: int = getattr(fcntl, "F_GETPIPE_SZ", 1032)
SIGSTKFLT: int = getattr(signal, "SIGSTKFLT", 16)
